SET check_function_bodies = off;
CREATE SCHEMA "select";
CREATE SCHEMA "Weird "" Schema" AUTHORIZATION app;
CREATE SCHEMA shop;
COMMENT ON SCHEMA shop IS 'it''s a \ shop';
COMMENT ON DATABASE hostile IS 'the whole';

-- Types: a domain over a composite, a range over an enum, arrays of all of them.
CREATE TYPE shop.mood AS ENUM ('sad', 'it''s ok', '"happy"');
CREATE TYPE shop.empty_enum AS ENUM ();
ALTER TYPE shop.mood ADD VALUE 'between' BEFORE 'it''s ok';
CREATE COLLATION shop.german (provider = icu, locale = 'de-u-co-phonebk');
CREATE COLLATION shop."blind" (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE COLLATION shop.plain (lc_collate = 'C', lc_ctype = 'C');
CREATE TYPE shop.point3 AS (x float8, "Y" float8, name text COLLATE "C");
COMMENT ON TYPE shop.point3 IS 'three';
COMMENT ON COLUMN shop.point3."Y" IS 'up';
CREATE TYPE shop.nothing AS ();
CREATE DOMAIN shop.place AS shop.point3 CONSTRAINT "up high" CHECK ((VALUE).x > 0);
CREATE DOMAIN shop.positive AS numeric(10,2) DEFAULT 1.50 NOT NULL CHECK (VALUE > 0);
CREATE DOMAIN shop.name AS text COLLATE shop.german;
COMMENT ON CONSTRAINT positive_check ON DOMAIN shop.positive IS 'above nothing';
CREATE TYPE shop.moods AS RANGE (SUBTYPE = shop.mood);
CREATE FUNCTION shop.float_diff(a float8, b float8) RETURNS float8 LANGUAGE sql IMMUTABLE AS 'SELECT a - b';
CREATE TYPE shop.spans AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = shop.float_diff, MULTIRANGE_TYPE_NAME = shop."Multi Spans");
CREATE TYPE shop.words AS RANGE (SUBTYPE = text, COLLATION = "C", SUBTYPE_OPCLASS = text_pattern_ops);

-- A domain whose check takes the domain itself.
CREATE DOMAIN shop.even AS int;
CREATE FUNCTION shop.is_even(v shop.even) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT v::int % 2 = 0';
ALTER DOMAIN shop.even ADD CONSTRAINT really CHECK (shop.is_even(VALUE)) NOT VALID;

-- Tables.
CREATE SEQUENCE shop."Order Numbers" AS smallint INCREMENT -3 MAXVALUE 10 MINVALUE -1000 START 7 CACHE 5 CYCLE;
CREATE TABLE shop."Order" (
	id bigint GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 10),
	"user" text COLLATE "C" NOT NULL DEFAULT CURRENT_USER,
	total shop.positive,
	mood shop.mood DEFAULT 'sad'::shop.mood,
	spot shop.place,
	old int,
	number int DEFAULT nextval('shop."Order Numbers"'),
	tax numeric GENERATED ALWAYS AS (length("user") * 0.2) STORED,
	moods shop.mood[] DEFAULT '{sad,"\"happy\""}',
	PRIMARY KEY (id) INCLUDE (number) WITH (fillfactor = 70),
	CONSTRAINT "un""ique" UNIQUE ("user", number) DEFERRABLE INITIALLY DEFERRED,
	CONSTRAINT apart EXCLUDE USING gist (int8range(id, id, '[]') WITH &&)
) WITH (fillfactor = 80, autovacuum_enabled = off, toast.autovacuum_enabled = off);
ALTER TABLE shop."Order" DROP COLUMN old;
ALTER TABLE shop."Order" ADD COLUMN serial serial;
ALTER TABLE shop."Order" ALTER COLUMN "user" SET STORAGE EXTERNAL, ALTER COLUMN "user" SET STATISTICS 500, ALTER COLUMN number SET (n_distinct = -0.5);
ALTER TABLE shop."Order" ALTER COLUMN "user" SET COMPRESSION pglz;
ALTER TABLE shop."Order" ADD CONSTRAINT cheap CHECK (total < 1000) NOT VALID;
ALTER TABLE shop."Order" ADD CONSTRAINT alone CHECK (number <> 13) NO INHERIT;
ALTER TABLE shop."Order" CLUSTER ON "Order_pkey";
ALTER TABLE shop."Order" REPLICA IDENTITY FULL;
COMMENT ON TABLE shop."Order" IS E'line\nline';
COMMENT ON COLUMN shop."Order"."user" IS 'who';
COMMENT ON CONSTRAINT cheap ON shop."Order" IS 'not dear';
CREATE UNLOGGED TABLE shop.scratch (a int, b text);
CREATE TABLE shop.no_columns ();
CREATE TABLE shop.moved (a int, b int);
CREATE TABLE shop.typed OF shop.point3 (x DEFAULT 1, CONSTRAINT named CHECK (x > 0));
CREATE INDEX "odd index" ON shop."Order" USING btree (lower("user") text_pattern_ops DESC NULLS LAST, number) INCLUDE (mood) WITH (fillfactor = 50) WHERE total > 5;
ALTER INDEX shop."odd index" ALTER COLUMN 1 SET STATISTICS 200;
COMMENT ON INDEX shop."odd index" IS 'odd';
CREATE UNIQUE INDEX identity ON shop.scratch (a);
CREATE UNIQUE INDEX for_identity ON shop."Order" (serial);
CREATE STATISTICS shop.together (ndistinct, dependencies) ON "user", number FROM shop."Order";
CREATE STATISTICS shop.expression ON lower("user"), mood FROM shop."Order";
ALTER STATISTICS shop.together SET STATISTICS 400;

-- Foreign keys in a circle, and one to itself.
CREATE TABLE shop.husband (id int PRIMARY KEY, wife int);
CREATE TABLE shop.wife (id int PRIMARY KEY, husband int REFERENCES shop.husband ON DELETE CASCADE ON UPDATE SET NULL DEFERRABLE, mother int REFERENCES shop.wife);
ALTER TABLE shop.husband ADD CONSTRAINT married FOREIGN KEY (wife) REFERENCES shop.wife NOT VALID;

-- Defaults, functions and views in circles.
CREATE TABLE shop.counted (id int, n bigint);
CREATE FUNCTION shop.how_many() RETURNS bigint LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM shop.counted; END;
ALTER TABLE shop.counted ALTER COLUMN n SET DEFAULT shop.how_many();
CREATE VIEW shop.first AS SELECT 1 AS a, 'x'::text COLLATE "C" AS b;
CREATE FUNCTION shop.of_view(v shop.first) RETURNS int LANGUAGE sql AS 'SELECT v.a';
CREATE OR REPLACE VIEW shop.first AS SELECT shop.of_view(NULL::shop.first) AS a, 'x'::text COLLATE "C" AS b;
CREATE FUNCTION shop.ping(n int) RETURNS int LANGUAGE sql AS 'SELECT n';
CREATE FUNCTION shop.pong(n int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE n WHEN 0 THEN 0 ELSE shop.ping(n - 1) END; END;
CREATE OR REPLACE FUNCTION shop.ping(n int) RETURNS int LANGUAGE sql BEGIN ATOMIC SELECT CASE n WHEN 0 THEN 0 ELSE shop.pong(n - 1) END; END;
CREATE FUNCTION shop.of_row(o shop."Order") RETURNS text LANGUAGE sql AS 'SELECT o."user"';

-- Code.
CREATE FUNCTION shop."Odd $$ name"(IN "from" int DEFAULT 5, VARIADIC rest text[] DEFAULT '{}', OUT a int, OUT "B" text) RETURNS SETOF record
	LANGUAGE plpgsql STABLE STRICT SECURITY DEFINER LEAKPROOF PARALLEL SAFE COST 7 ROWS 9 SET search_path = shop, "select" SET work_mem = '8MB' AS $body$ BEGIN -- $$ $function$
RETURN; END $body$;
COMMENT ON FUNCTION shop."Odd $$ name" IS 'odd';
CREATE FUNCTION shop.a_table(n int) RETURNS TABLE (x int, "Y z" text) LANGUAGE sql AS 'SELECT n, NULL::text';
CREATE PROCEDURE shop.act(INOUT n int) LANGUAGE plpgsql AS 'BEGIN n := n + 1; END';
CREATE FUNCTION shop.adds(int, int) RETURNS int LANGUAGE sql IMMUTABLE STRICT AS 'SELECT $1 + $2';
CREATE AGGREGATE shop.total(int) (SFUNC = shop.adds, STYPE = int, INITCOND = '0', PARALLEL = SAFE, COMBINEFUNC = shop.adds);
CREATE AGGREGATE shop.rows(*) (SFUNC = int8inc, STYPE = int8, INITCOND = '0', MSFUNC = int8inc, MINVFUNC = int8dec, MSTYPE = int8, MINITCOND = '0');
CREATE AGGREGATE shop.share(float8 ORDER BY anyelement) (SFUNC = ordered_set_transition, STYPE = internal, FINALFUNC = percentile_disc_final, FINALFUNC_EXTRA);
COMMENT ON AGGREGATE shop.total(int) IS 'sum';
CREATE FUNCTION shop.same(a shop.point3, b shop.point3) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT (a).x = (b).x';
CREATE FUNCTION shop.differ(a shop.point3, b shop.point3) RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT (a).x <> (b).x';
CREATE OPERATOR shop.=== (FUNCTION = shop.same, LEFTARG = shop.point3, RIGHTARG = shop.point3, COMMUTATOR = OPERATOR(shop.===), NEGATOR = OPERATOR(shop.!==), RESTRICT = eqsel, JOIN = eqjoinsel);
CREATE OPERATOR shop.!== (FUNCTION = shop.differ, LEFTARG = shop.point3, RIGHTARG = shop.point3, COMMUTATOR = OPERATOR(shop.!==), NEGATOR = OPERATOR(shop.===));
CREATE FUNCTION shop.as_text(p shop.point3) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT (p).name';
CREATE CAST (shop.point3 AS text) WITH FUNCTION shop.as_text(shop.point3) AS ASSIGNMENT;
CREATE CAST (shop.mood AS bytea) WITH INOUT;

-- Views on views, over the keys of tables.
CREATE VIEW shop."a view" WITH (security_barrier = true, check_option = 'local') AS SELECT id, "user", total FROM shop."Order" WHERE total > 0;
ALTER VIEW shop."a view" ALTER COLUMN "user" SET DEFAULT 'nobody';
COMMENT ON COLUMN shop."a view"."user" IS 'seen';
CREATE VIEW shop.by_key AS SELECT o.id, o."user", count(*) FROM shop."Order" o JOIN shop.counted c ON c.id = o.number GROUP BY o.id;
CREATE VIEW shop.numbers (n) AS WITH RECURSIVE r (n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM r WHERE n < 10) SELECT n FROM r;
CREATE MATERIALIZED VIEW shop.kept WITH (fillfactor = 60) AS SELECT "user", sum(total) AS s FROM shop."a view" GROUP BY 1;
CREATE UNIQUE INDEX ON shop.kept ("user");
COMMENT ON MATERIALIZED VIEW shop.kept IS 'kept';
CREATE RULE "no delete" AS ON DELETE TO shop.by_key DO INSTEAD NOTHING;
CREATE RULE log AS ON UPDATE TO shop.scratch WHERE old.a > 1 DO ALSO INSERT INTO shop.counted VALUES (old.a, 1);
ALTER TABLE shop.scratch DISABLE RULE log;

-- Partitions, three deep, with columns in another order, and old inheritance.
CREATE TABLE shop.events (at timestamptz NOT NULL, kind text, n int DEFAULT 3, CHECK (n > 0)) PARTITION BY RANGE (at);
CREATE TABLE shop.events_2025 PARTITION OF shop.events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (n);
CREATE TABLE shop."events 2025 a" PARTITION OF shop.events_2025 FOR VALUES IN (1, 2) WITH (fillfactor = 90);
CREATE TABLE shop.events_2025_rest PARTITION OF shop.events_2025 DEFAULT;
CREATE TABLE shop.events_2026 (n int, kind text, at timestamptz NOT NULL, CONSTRAINT events_n_check CHECK (n > 0), CONSTRAINT mine CHECK (kind <> ''));
ALTER TABLE shop.events ATTACH PARTITION shop.events_2026 FOR VALUES FROM ('2026-01-01') TO (MAXVALUE);
ALTER TABLE shop.events_2026 ALTER COLUMN n SET DEFAULT 9;
ALTER TABLE shop.events ADD PRIMARY KEY (at, n);
CREATE INDEX events_kind ON shop.events (kind);
ALTER INDEX shop."events 2025 a_kind_idx" RENAME TO "zz other name";
CREATE TABLE shop.hashed (a int) PARTITION BY HASH (abs(a));
CREATE TABLE shop.hashed_0 PARTITION OF shop.hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE shop.refers (at timestamptz, n int, FOREIGN KEY (at, n) REFERENCES shop.events);
CREATE TABLE shop.animal (name text NOT NULL DEFAULT 'it', legs int CHECK (legs >= 0));
CREATE TABLE shop.aa_dog (bark text) INHERITS (shop.animal);
ALTER TABLE shop.aa_dog ALTER COLUMN name SET DEFAULT 'dog', ALTER COLUMN legs SET NOT NULL;
CREATE TABLE shop.cat (legs int CHECK (legs >= 0), purr text, name text NOT NULL);
ALTER TABLE shop.cat ADD CONSTRAINT animal_legs_check CHECK (legs >= 0);
ALTER TABLE shop.cat INHERIT shop.animal;
CREATE TABLE shop.pet (owner text);
CREATE TABLE shop.lapdog (size int) INHERITS (shop.aa_dog, shop.pet);

-- Triggers, event triggers, policies.
CREATE FUNCTION shop.fire() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN new; END';
CREATE TRIGGER "before it" BEFORE UPDATE OF total, "user" ON shop."Order" FOR EACH ROW WHEN (old.total IS DISTINCT FROM new.total) EXECUTE FUNCTION shop.fire('a', 'it''s');
CREATE TRIGGER seen AFTER INSERT ON shop."Order" REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION shop.fire();
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON shop."Order" DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION shop.fire();
CREATE TRIGGER instead INSTEAD OF INSERT ON shop."a view" FOR EACH ROW EXECUTE FUNCTION shop.fire();
CREATE TRIGGER on_events AFTER INSERT ON shop.events FOR EACH ROW EXECUTE FUNCTION shop.fire();
ALTER TABLE shop."Order" ENABLE ALWAYS TRIGGER seen, DISABLE TRIGGER late;
ALTER TABLE shop.events_2026 DISABLE TRIGGER on_events;
COMMENT ON TRIGGER seen ON shop."Order" IS 'saw it';
CREATE FUNCTION shop.refuse() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''nothing may change''; END';
ALTER TABLE shop."Order" ENABLE ROW LEVEL SECURITY;
ALTER TABLE shop."Order" FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON shop."Order" AS RESTRICTIVE FOR UPDATE TO app, "select" USING ("user" = CURRENT_USER) WITH CHECK (total > 1);
CREATE POLICY everybody ON shop."Order" USING (EXISTS (SELECT FROM shop.husband));
COMMENT ON POLICY own ON shop."Order" IS 'their own';

-- Who owns and may do what.
ALTER TABLE shop."Order" OWNER TO app;
ALTER FUNCTION shop.adds(int, int) OWNER TO "Mixed ""Role""";
ALTER SEQUENCE shop."Order Numbers" OWNER TO "select";
GRANT USAGE ON SCHEMA shop TO PUBLIC;
GRANT USAGE, CREATE ON SCHEMA shop TO app WITH GRANT OPTION;
GRANT SELECT, INSERT ON shop."Order" TO reader;
GRANT SELECT ON shop."Order" TO "select" WITH GRANT OPTION;
SET SESSION AUTHORIZATION "select";
GRANT SELECT ON shop."Order" TO "Mixed ""Role""";
RESET SESSION AUTHORIZATION;
GRANT UPDATE (total, "user"), REFERENCES (id) ON shop."Order" TO reader;
GRANT SELECT ON shop."a view" TO PUBLIC;
REVOKE INSERT ON shop.scratch FROM postgres;
REVOKE ALL ON FUNCTION shop."Odd $$ name" FROM PUBLIC;
GRANT EXECUTE ON FUNCTION shop."Odd $$ name" TO app;
GRANT EXECUTE ON PROCEDURE shop.act TO reader WITH GRANT OPTION;
REVOKE ALL ON TYPE shop.mood FROM PUBLIC;
GRANT USAGE ON SEQUENCE shop."Order Numbers" TO reader;
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT CREATE ON DATABASE hostile TO app;
ALTER DEFAULT PRIVILEGES FOR ROLE app GRANT SELECT ON TABLES TO reader;
ALTER DEFAULT PRIVILEGES FOR ROLE app REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA shop GRANT ALL ON SEQUENCES TO "select" WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO "select";

-- Others.
ALTER DATABASE hostile SET search_path = shop, "$user", "Weird "" Schema";
ALTER DATABASE hostile SET work_mem = '9MB';
ALTER ROLE app IN DATABASE hostile SET "my.setting" = 'it''s = so';
ALTER ROLE reader SET statement_timeout = '1min';
CREATE FOREIGN DATA WRAPPER remote OPTIONS (debug 'true');
CREATE SERVER "far away" TYPE 't' VERSION '1' FOREIGN DATA WRAPPER remote OPTIONS (host 'h', "odd name" 'it''s', password 'production-secret');
CREATE USER MAPPING FOR PUBLIC SERVER "far away" OPTIONS (password 'production-secret');
CREATE USER MAPPING FOR app SERVER "far away" OPTIONS (password 'production-secret');
CREATE FOREIGN TABLE shop.remote (id int OPTIONS (a 'b') NOT NULL, t text DEFAULT 'x', CONSTRAINT far CHECK (id > 0)) SERVER "far away" OPTIONS (name 'remote');
GRANT USAGE ON FOREIGN SERVER "far away" TO reader;
CREATE PUBLICATION "some" FOR TABLE shop."Order", shop.husband WITH (publish = 'insert, delete');
CREATE PUBLICATION every FOR ALL TABLES;
CREATE TEXT SEARCH DICTIONARY shop.plain_words (TEMPLATE = pg_catalog.simple, STOPWORDS = english);
CREATE TEXT SEARCH CONFIGURATION shop.search (COPY = pg_catalog.simple);
ALTER TEXT SEARCH CONFIGURATION shop.search ALTER MAPPING FOR word, asciiword WITH shop.plain_words, english_stem;
COMMENT ON TEXT SEARCH CONFIGURATION shop.search IS 'words';
CREATE TABLE "select"."from" ("where" int, "and" text, "Ünïcode 😀" text DEFAULT 'ü');
CREATE VIEW "select"."order" AS SELECT "where" AS "group", "Ünïcode 😀" FROM "select"."from";
CREATE TABLE "Weird "" Schema"."tab""le" ("a.b" int, """" text);
CREATE INDEX "Weird "" index" ON "Weird "" Schema"."tab""le" ("a.b");
COMMENT ON COLUMN "Weird "" Schema"."tab""le"."""" IS 'quote';
CREATE EVENT TRIGGER "no change" ON ddl_command_start WHEN TAG IN ('CREATE TABLE', 'DROP TABLE') EXECUTE FUNCTION shop.refuse();
CREATE EVENT TRIGGER off ON sql_drop EXECUTE FUNCTION shop.refuse();
ALTER EVENT TRIGGER off DISABLE;
