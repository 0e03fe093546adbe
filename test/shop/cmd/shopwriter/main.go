// Command shopwriter makes the shop's database and places orders in it.
//
//	SHOP=connstring shopwriter -load -scale 1
//	SHOP=connstring shopwriter -customers 4 -rate 50 -acked FILE
//
// The connection string is in the environment, where ps does not show its
// password. The second form runs until SIGTERM and appends the number of each
// acknowledged order to FILE, one a line.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"

	"github.com/pgbough/pgbough/test/shop"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	err := run(ctx, os.Args[1:], os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "shopwriter:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, talk io.Writer) (err error) {
	flags := flag.NewFlagSet("shopwriter", flag.ContinueOnError)
	load := flags.Bool("load", false, "make the schema and its data, and end")
	scale := flags.Float64("scale", 1, "with -load: how much data, in units of about 200 MB")
	customers := flags.Int("customers", 4, "how many place orders at the same time")
	perSecond := flags.Float64("rate", 50, "orders a second, all together; 0 is without limit")
	acked := flags.String("acked", "", "file that the numbers of acknowledged orders are appended to")
	seed := flags.Uint64("seed", 1, "of what is bought")
	if err := flags.Parse(args); err != nil {
		return err
	}
	shopAt := os.Getenv("SHOP")
	if shopAt == "" || flags.NArg() > 0 {
		return errors.New("give the connection string of the shop in the environment, as SHOP, and no arguments")
	}
	if *load {
		return fill(ctx, shopAt, *scale)
	}
	out, err := os.OpenFile(*acked, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the record of orders (-acked): %w", err)
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	return shop.Writer{
		ConnString: shopAt,
		Customers:  *customers,
		Rate:       rate.Limit(*perSecond),
		Seed:       *seed,
		Acknowledged: func(number int64) error {
			_, err := out.WriteString(strconv.FormatInt(number, 10) + "\n")
			return err
		},
		Failed: func(err error) { _, _ = fmt.Fprintln(talk, "shopwriter:", err) },
	}.Run(ctx)
}

func fill(ctx context.Context, connString string, scale float64) error {
	conn, err := pgx.Connect(ctx, connString)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return errors.Join(shop.Load(ctx, conn, scale), conn.Close(context.WithoutCancel(ctx)))
}
