SELECT * FROM customer WHERE id = 1300
SELECT * FROM customer WHERE name LIKE '%abc%'
SELECT * FROM customer WHERE name ~~~ 'Customer 17'
SELECT * FROM customer WHERE nick = 'n17'
SELECT * FROM customer WHERE mail = 'C99@example.ORG'
SELECT * FROM customer WHERE tags @> 'lang=>ta'
SELECT name FROM customer WHERE since > '2026-06-01' ORDER BY since DESC NULLS LAST LIMIT 10
SELECT * FROM customer ORDER BY name
SELECT initial, count(*) FROM customer GROUP BY initial
SELECT * FROM customer c JOIN orders o ON o.customer_id = c.id WHERE o.at BETWEEN '2026-02-01' AND '2026-02-03'
SELECT c.id, sum(o.total) FROM customer c LEFT JOIN orders o ON o.customer_id = c.id GROUP BY c.id HAVING sum(o.total) > 100
SELECT * FROM orders WHERE at = '2026-05-05' AND customer_id = 1600
SELECT * FROM orders WHERE customer_id IN (1003, 1600, 2500)
SELECT state, count(*) FROM orders_q1 GROUP BY state, customer_id
SELECT * FROM orders_q1 WHERE total % 7 = 3
SELECT * FROM orders_q1 WHERE extract(isodow FROM at) = 6 AND state = 'lost'
SELECT * FROM open_orders WHERE total > 900
SELECT * FROM product WHERE words @@ to_tsquery('english', 'run & shoe')
SELECT * FROM product WHERE sku = 'P1234'
SELECT * FROM product WHERE attrs->>'colour' = 'red' AND price * 1.2 > 300
SELECT * FROM product WHERE id BETWEEN 100 AND 120
SELECT p.sku, b.n FROM best b JOIN product p ON p.id = b.product_id ORDER BY b.n DESC LIMIT 5
SELECT o.id, c.name, p.sku, l.amount FROM orders o JOIN customer c ON c.id = o.customer_id JOIN line l ON l.order_id = o.id JOIN product p ON p.id = l.product_id WHERE p.price > 250 AND o.state = 'paid'
SELECT * FROM line l WHERE NOT EXISTS (SELECT FROM orders o WHERE o.id = l.order_id AND o.state = 'lost')
SELECT product_id, rank() OVER (PARTITION BY at ORDER BY amount DESC) FROM line
SELECT * FROM booking WHERE room = 3 AND during && tstzrange('2026-02-01', '2026-02-02')
SELECT * FROM booking a JOIN booking b ON a.width && b.width
SELECT * FROM parent WHERE id < 20
SELECT * FROM wide WHERE id > 850
SELECT * FROM generate_series(1, 10) g, LATERAL total_of(1000 + 3 * g)
WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < 50) SELECT count(*) FROM up JOIN child ON child.id = n
SELECT (SELECT max(at) FROM orders), count(DISTINCT customer_id) FROM orders
UPDATE orders SET state = 'gone' WHERE at < '2026-01-05'
DELETE FROM customer WHERE id NOT IN (SELECT customer_id FROM orders)
SELECT * FROM "Weird Schema"."a table; with 'quotes'" WHERE "größe" IS NULL
