package source

import (
	"context"
	"fmt"
)

// checkSlots looks at everything about replication slots; with a restore command
// none is needed.
func (c *checker) checkSlots(ctx context.Context) {
	if c.o.RestoreCommand != "" {
		c.fail("replication_slots", "following production's WAL archive instead of a slot is not in this version", "leave --restore-command out")
		return
	}
	mine := c.checkSlotName(ctx)
	limit, used := c.number("max_replication_slots"), c.facts.slots
	if mine {
		used--
	}
	if limit > used {
		c.ok("replication_slots", "%d of %d replication slots are free", limit-used, limit)
	} else {
		c.fail("replication_slots", fmt.Sprintf("none of %d replication slots is free", limit),
			fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %d; -- then restart production; or drop one that nobody uses: SELECT slot_name, active FROM pg_replication_slots;", used+2))
	}
	c.checkSlotLimit()
}

// checkSlotName looks for a slot of the name we would use, and tells whether there is one.
func (c *checker) checkSlotName(ctx context.Context) bool {
	name := c.o.SlotName
	if name == "" {
		return false
	}
	slot, err := readSlot(ctx, c.pg, name)
	switch {
	case err != nil:
		c.skip("slot_name", "could not be looked at: "+diagnose(c.config, err, false).reason)
	case !slot.Exists:
		c.ok("slot_name", "slot %q is not taken", name)
	case !slot.Physical:
		c.fail("slot_name", fmt.Sprintf("there is a logical replication slot %q", name), "attach under another project name")
	case slot.Active:
		c.fail("slot_name", fmt.Sprintf("slot %q is in use by backend %d: another pgbough follows this production under the same name", name, slot.ActivePID),
			"attach under another project name, or delete that project first")
	default:
		c.warn("slot_name", fmt.Sprintf("slot %q exists and nobody uses it; attach makes it anew", name),
			fmt.Sprintf("SELECT pg_drop_replication_slot(%s); -- if it is not an earlier attempt's", quoteLiteral(name)))
	}
	return slot.Exists
}

// checkSlotLimit refuses a slot that could fill production's disk when we stall.
func (c *checker) checkSlotLimit() {
	const name = "max_slot_wal_keep_size"
	limit, walSize := c.bytes(name), c.bytes("max_wal_size")
	suggested := max(10<<30, 4*walSize)
	fix := fmt.Sprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dMB'; SELECT pg_reload_conf();", suggested>>20)
	switch {
	case limit < 0 && c.o.AcceptUnlimitedSlot:
		c.warn(name, "production keeps WAL for us without a limit, as was accepted", fix)
	case limit < 0:
		c.fail(name, "production would keep WAL for us without a limit and fill its disk if we stall (max_slot_wal_keep_size is -1)", fix)
	case limit < walSize:
		c.warn(name, fmt.Sprintf("production keeps only %s of WAL for us, less than max_wal_size (%s): a short break may cost the follower", sizeText(limit), sizeText(walSize)), fix)
	default:
		c.ok(name, "production keeps at most %s of WAL for us", sizeText(limit))
	}
}
