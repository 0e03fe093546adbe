-- Two years of the shop, the same at every run. shop.scale 1 is about 200 MB.

SET max_parallel_workers_per_gather = 0; -- so that random() comes in one order

SELECT setseed(0.1);
INSERT INTO customers (email, name, city, profile, created_at)
SELECT 'customer' || i || '@example.com',
       (ARRAY['Ada', 'Ben', 'Chloe', 'Dev', 'Elif', 'Femi', 'Grace', 'Hugo'])[1 + i % 8] || ' '
           || (ARRAY['Ng', 'Okafor', 'Silva', 'Novak', 'Weber', 'Tanaka', 'Lopez'])[1 + i % 7],
       (ARRAY['Bergen', 'Cusco', 'Lyon', 'Osaka', 'Porto', 'Tampere', 'Windhoek'])[1 + (random() * 6)::int],
       jsonb_build_object('newsletter', random() < 0.3, 'language', (ARRAY['en', 'fr', 'pt'])[1 + i % 3],
           'points', (random() * 1000)::int),
       timestamptz '2024-01-01Z' + random() * interval '360 days'
FROM generate_series(1, greatest(100, 40000 * current_setting('shop.scale')::numeric)::int) i;

SELECT setseed(0.2);
INSERT INTO products (sku, name, category, price, attributes)
SELECT 'SKU-' || lpad(i::text, 6, '0'),
       (ARRAY['Plain', 'Round', 'Heavy', 'Little', 'Folding'])[1 + i % 5] || ' '
           || (ARRAY['lamp', 'kettle', 'chair', 'clock', 'shelf', 'rug'])[1 + i % 6] || ' no. ' || i,
       (ARRAY['light', 'kitchen', 'seating', 'time', 'storage', 'floor'])[1 + i % 6],
       round((5 + random() * 495)::numeric, 2),
       jsonb_build_object('colour', (ARRAY['red', 'oak', 'white', 'black'])[1 + (random() * 3)::int],
           'grams', (100 + random() * 9900)::int)
FROM generate_series(1, greatest(50, 4000 * current_setting('shop.scale')::numeric)::int) i;

INSERT INTO inventory (product_id, in_stock)
SELECT id, 100 + (id % 900)::int FROM products;

SELECT setseed(0.3);
INSERT INTO orders (customer_id, status, placed_at)
SELECT 1 + floor(random() * n.customers)::bigint,
       (ARRAY['shipped', 'shipped', 'shipped', 'shipped', 'cancelled', 'paid'])[1 + (random() * 5)::int]::order_status,
       timestamptz '2025-01-01Z' + i * (interval '700 days' / n.orders)
FROM (SELECT (SELECT count(*) FROM customers) AS customers,
             greatest(500, 250000 * current_setting('shop.scale')::numeric)::int AS orders) n,
     generate_series(1, n.orders) i;

SELECT setseed(0.4);
INSERT INTO order_items (order_id, line, product_id, quantity, price)
SELECT l.order_id, l.line, p.id, l.quantity, p.price
FROM (SELECT o.id AS order_id, line, 1 + (random() * 3)::int AS quantity,
             1 + floor(random() * n.products)::bigint AS product_id
      FROM (SELECT count(*) AS products FROM products) n,
           orders o, generate_series(1, 1 + (o.id % 4)) line) l
JOIN products p ON p.id = l.product_id;

UPDATE orders o SET total = i.total
FROM (SELECT order_id, sum(quantity * price) AS total FROM order_items GROUP BY order_id) i
WHERE i.order_id = o.id;

SELECT setseed(0.5);
INSERT INTO payments (id, order_id, amount, method, paid_at)
SELECT md5('payment ' || id)::uuid, id, total,
       (ARRAY['card', 'card', 'transfer', 'voucher'])[1 + (random() * 3)::int],
       placed_at + random() * interval '1 hour'
FROM orders WHERE status IN ('paid', 'shipped');

INSERT INTO events (at, kind, order_id, data)
SELECT placed_at, 'order.' || status, id, jsonb_build_object('customer', customer_id, 'total', total)
FROM orders;

RESET max_parallel_workers_per_gather;
