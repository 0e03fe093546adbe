-- Run in database shop, as superuser. Every row follows from its number, so
-- that the same file makes the same data.
SET search_path = sales, public;
INSERT INTO customer (name, nick, mail, home, tags, since, photo)
  SELECT 'Customer ' || i || ' ' || md5(i::text), 'N' || i, 'c' || i || '@Example.org', ROW('Street ' || i % 97, (10000 + i)::text, point(i % 90, i % 45))::address,
    hstore('lang', (ARRAY['de', 'en', 'fr', 'ta'])[1 + i % 4]) || hstore('n' || i % 13, i::text), '2026-01-01'::timestamptz + i * interval '71 minutes',
    CASE WHEN i % 50 = 0 THEN convert_to(repeat(md5(i::text), 200), 'UTF8') END
  FROM generate_series(1, 4000) i;
INSERT INTO product (sku, price, attrs)
  SELECT 'P' || i, i % 311 + 0.99, jsonb_build_object('colour', (ARRAY['red', 'green', 'blue'])[1 + i % 3], 'text', 'A ' || md5(i::text) || ' running shoe number ' || i % 29)
  FROM generate_series(1, 3000) i;
ALTER TABLE product DROP COLUMN old_column;
ALTER TABLE product ADD COLUMN later text DEFAULT 'given later';
INSERT INTO orders (customer_id, at, state, total)
  SELECT 1000 + 3 * (i * i % 4000), '2026-01-01'::date + i % 230, (ARRAY['new', 'paid', 'paid', 'shipped', 'shipped', 'shipped', 'lost']::state[])[1 + i % 7], i % 977
  FROM generate_series(1, 16000) i;
INSERT INTO line SELECT o.id, o.at, n, 1 + (o.id * 31 + n * 7) % 3000, 1 + n FROM orders o, generate_series(1, 2) n;
INSERT INTO booking SELECT i % 20, tstzrange('2026-01-01'::timestamptz + i * interval '2 hours', '2026-01-01'::timestamptz + i * interval '2 hours' + interval '1 hour'), span(i, i + 0.5) FROM generate_series(1, 2000) i;
INSERT INTO parent SELECT i, 'parent ' || i FROM generate_series(1, 500) i;
INSERT INTO child SELECT i, 'child ' || i, i FROM generate_series(1, 700) i;
INSERT INTO wide SELECT i, repeat(md5(i::text), 40 * (i % 20)), ARRAY(SELECT generate_series(1, i % 60)) FROM generate_series(1, 900) i;
INSERT INTO "Weird Schema"."a table; with 'quotes'" VALUES (1, E'back\\slash\ttab\nnewline'), (2, NULL), (3, '');
INSERT INTO cart (what) SELECT 'thing' FROM generate_series(1, 100);
REFRESH MATERIALIZED VIEW best;

-- A history in the files: dead rows, free space, HOT chains, a truncated table, an aborted transaction.
UPDATE customer SET name = name || '!' WHERE id % 11 = 0;
DELETE FROM orders WHERE id % 17 = 0 AND NOT EXISTS (SELECT FROM line WHERE line.order_id = orders.id);
DELETE FROM line WHERE n = 2 AND order_id % 5 = 0;
DELETE FROM wide WHERE id BETWEEN 300 AND 500;
VACUUM line;
UPDATE product SET price = price + 1 WHERE id % 4 = 0;
BEGIN; INSERT INTO parent VALUES (9999, 'never'); UPDATE parent SET v = 'x' WHERE id < 50; ROLLBACK;
CREATE TABLE emptied AS SELECT generate_series(1, 1000) AS i; TRUNCATE emptied;
SELECT lo_from_bytea(4242, convert_to(repeat('large object ', 5000), 'UTF8')), lo_from_bytea(0, '\x00ff'), lo_create(777);
GRANT SELECT ON LARGE OBJECT 4242 TO app;
COMMENT ON LARGE OBJECT 777 IS 'an empty one';
SELECT count(nextval('tens')) FROM generate_series(1, 51);
SELECT count(nextval('down')) FROM generate_series(1, 40);
SELECT count(nextval('round')) FROM generate_series(1, 45);
SELECT setval('was_set', 123456, false);
VACUUM (FREEZE) best;
ANALYZE;
