-- What holds for the shop's data and is made after it: indexes, foreign keys,
-- views, triggers.

CREATE INDEX products_attributes ON products USING gin (attributes);
CREATE INDEX orders_customer ON orders (customer_id, placed_at);
CREATE INDEX order_items_product ON order_items (product_id);
CREATE INDEX payments_order ON payments (order_id);
CREATE INDEX events_order ON events (order_id);

ALTER TABLE inventory ADD FOREIGN KEY (product_id) REFERENCES products;
ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers;
ALTER TABLE order_items
    ADD FOREIGN KEY (order_id) REFERENCES orders ON DELETE CASCADE,
    ADD FOREIGN KEY (product_id) REFERENCES products;
ALTER TABLE payments ADD FOREIGN KEY (order_id) REFERENCES orders ON DELETE CASCADE;

CREATE VIEW open_orders AS
    SELECT o.id, c.name, o.total, o.placed_at
    FROM orders o JOIN customers c ON c.id = o.customer_id
    WHERE o.status IN ('placed', 'paid');

CREATE MATERIALIZED VIEW revenue_by_category AS
    SELECT p.category, count(*) AS lines, sum(i.quantity * i.price) AS revenue
    FROM order_items i JOIN products p ON p.id = i.product_id
    GROUP BY p.category;
CREATE UNIQUE INDEX revenue_by_category_key ON revenue_by_category (category);

CREATE FUNCTION take_from_stock() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- What runs low is ordered anew at once: the shop never runs out.
    UPDATE inventory
    SET in_stock = in_stock - NEW.quantity + CASE WHEN in_stock < 100 THEN 1000 ELSE 0 END
    WHERE product_id = NEW.product_id;
    UPDATE orders SET total = total + NEW.quantity * NEW.price WHERE id = NEW.order_id;
    RETURN NULL;
END $$;

CREATE FUNCTION record_status() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO events (kind, order_id, data)
    VALUES ('order.' || NEW.status, NEW.id, jsonb_build_object('customer', NEW.customer_id, 'total', NEW.total));
    RETURN NULL;
END $$;

CREATE TRIGGER take_from_stock AFTER INSERT ON order_items
    FOR EACH ROW EXECUTE FUNCTION take_from_stock();
CREATE TRIGGER record_status AFTER INSERT OR UPDATE OF status ON orders
    FOR EACH ROW EXECUTE FUNCTION record_status();

ANALYZE;
