package shop

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/time/rate"
)

// Writer is customers who place orders all the time.
type Writer struct {
	ConnString string
	Customers  int        // how many at the same time; 1 when 0
	Rate       rate.Limit // orders a second, of all together; no limit when 0
	Seed       uint64     // of what they buy
	// Acknowledged is called with the number of each acknowledged order, one
	// call at a time.
	Acknowledged func(number int64) error
	// Failed is called with what went wrong before it is tried again. An order
	// whose commit failed may have been placed or not.
	Failed func(error)
}

// pause is how long a customer waits before trying again.
const pause = 300 * time.Millisecond

// Run places orders until ctx ends or Acknowledged fails. It outlives restarts
// of the server.
func (w Writer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	limit := w.Rate
	if limit == 0 {
		limit = rate.Inf
	}
	limiter := rate.NewLimiter(limit, 1)
	var one sync.Mutex // of Acknowledged and Failed
	var wg sync.WaitGroup
	for i := range max(w.Customers, 1) {
		c := customer{Writer: w, limiter: limiter, one: &one, fail: cancel, random: rand.New(rand.NewPCG(w.Seed, uint64(i)))}
		wg.Go(func() { c.shop(ctx) })
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

type customer struct {
	Writer
	limiter *rate.Limiter
	one     *sync.Mutex
	fail    context.CancelCauseFunc
	random  *rand.Rand
}

// shop connects and orders, again and again.
func (c *customer) shop(ctx context.Context) {
	for ctx.Err() == nil {
		err := c.visit(ctx)
		if ctx.Err() != nil {
			return
		}
		if c.Failed != nil {
			c.one.Lock()
			c.Failed(err)
			c.one.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// visit places orders over one connection until something fails.
func (c *customer) visit(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, c.ConnString)
	if err != nil {
		return fmt.Errorf("connect to the shop: %w", err)
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(bye) // it may be broken already
	}()
	var customers, products int64
	err = conn.QueryRow(ctx, "SELECT (SELECT max(id) FROM customers), (SELECT max(id) FROM products)").Scan(&customers, &products)
	if err != nil {
		return fmt.Errorf("enter the shop: %w", err)
	}
	for {
		if err := c.limiter.Wait(ctx); err != nil {
			return err
		}
		number, err := c.order(ctx, conn, customers, products)
		if err != nil {
			return fmt.Errorf("place an order: %w", err)
		}
		c.one.Lock()
		err = c.Acknowledged(number)
		c.one.Unlock()
		if err != nil {
			c.fail(fmt.Errorf("record order %d: %w", number, err))
			return err
		}
	}
}

// order places and pays one order and returns its number.
func (c *customer) order(ctx context.Context, conn *pgx.Conn, customers, products int64) (number int64, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, "INSERT INTO orders (customer_id) VALUES ($1) RETURNING id", 1+c.random.Int64N(customers)).Scan(&number)
		if err != nil {
			return err
		}
		wanted := make([]int64, 1+c.random.IntN(4))
		for i := range wanted {
			wanted[i] = 1 + c.random.Int64N(products)
		}
		slices.Sort(wanted) // stock is locked in this order: no deadlocks
		for line, product := range wanted {
			_, err := tx.Exec(ctx, `INSERT INTO order_items (order_id, line, product_id, quantity, price)
				SELECT $1, $2, id, $3, price FROM products WHERE id = $4`, number, line+1, 1+c.random.IntN(3), product)
			if err != nil {
				return err
			}
		}
		_, err = tx.Exec(ctx, "INSERT INTO payments (order_id, amount, method) SELECT id, total, 'card' FROM orders WHERE id = $1", number)
		if err != nil {
			return err
		}
		_, err = tx.Exec(ctx, "UPDATE orders SET status = 'paid' WHERE id = $1", number)
		return err
	})
	return number, err
}
