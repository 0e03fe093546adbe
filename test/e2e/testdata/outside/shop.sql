-- Run in database shop of production. @PORT@ is production's own port,
-- @UPSTREAM@ that of another server, @LISTENER@ that of a plain TCP listener.
CREATE EXTENSION postgres_fdw;
CREATE EXTENSION dblink;
CREATE EXTENSION pg_cron;

-- Whoever acts on production says who it is here.
CREATE TABLE touched (how text, by text);
GRANT INSERT ON touched TO fdw_user, link_user, trusted;

CREATE SERVER loop FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '@PORT@', dbname 'shop');
CREATE USER MAPPING FOR public SERVER loop OPTIONS (user 'fdw_user', password 'sekret-of-old-fdw');
ALTER USER MAPPING FOR public SERVER loop OPTIONS (SET password 'sekret-of-fdw');
CREATE FOREIGN TABLE touched_there (how text, by text) SERVER loop OPTIONS (schema_name 'public', table_name 'touched');
CREATE SERVER link FOREIGN DATA WRAPPER dblink_fdw OPTIONS (host '127.0.0.1', port '@PORT@', dbname 'shop');
CREATE USER MAPPING FOR postgres SERVER link OPTIONS (user 'link_user', password 'sekret-of-link');
-- A password that does not fit into a row.
CREATE SERVER long FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '@PORT@', dbname 'shop');
CREATE USER MAPPING FOR public SERVER long OPTIONS (user 'fdw_user', password '@LONG@');

CREATE FUNCTION use_fdw() RETURNS void SECURITY DEFINER LANGUAGE sql AS
  $$ INSERT INTO touched_there VALUES ('fdw', current_setting('cluster_name')) $$;
CREATE FUNCTION use_link() RETURNS void SECURITY DEFINER LANGUAGE sql AS
  $$ SELECT dblink_exec('link', format('INSERT INTO touched VALUES (''link'', %L)', current_setting('cluster_name'))) $$;
CREATE FUNCTION use_conninfo() RETURNS void SECURITY DEFINER LANGUAGE sql AS
  $$ SELECT dblink_exec('host=127.0.0.1 port=@PORT@ user=trusted dbname=shop', format('INSERT INTO touched VALUES (''conninfo'', %L)', current_setting('cluster_name'))) $$;
CREATE FUNCTION use_program() RETURNS void SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN COPY (SELECT 'program of ' || current_setting('cluster_name')) TO PROGRAM 'bash -c "cat > /dev/tcp/127.0.0.1/@LISTENER@"'; END $$;
CREATE FUNCTION act(how text) RETURNS void SECURITY DEFINER LANGUAGE sql AS
  $$ SELECT dblink_exec('host=127.0.0.1 port=@UPSTREAM@ user=postgres dbname=postgres', format('INSERT INTO acted VALUES (%L, %L)', how, current_setting('cluster_name'))) $$;

CREATE TABLE orders (id int PRIMARY KEY);
CREATE SUBSCRIPTION sub CONNECTION 'host=127.0.0.1 port=@UPSTREAM@ dbname=postgres user=feeder password=sekret-of-feeder' PUBLICATION feed WITH (slot_name = 'shop_sub');
CREATE PUBLICATION ours FOR ALL TABLES;
SELECT pg_create_physical_replication_slot('standby', true), pg_create_logical_replication_slot('cdc', 'pgoutput');
SELECT cron.schedule('tick', '* * * * *', $$SELECT act('cron')$$);

CREATE FUNCTION tell() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.act('event trigger'); END $$;
CREATE EVENT TRIGGER tell ON ddl_command_end EXECUTE FUNCTION tell();
ALTER EVENT TRIGGER tell ENABLE ALWAYS;

BEGIN; INSERT INTO orders VALUES (-1); PREPARE TRANSACTION 'left open';
ANALYZE pg_authid, pg_user_mapping, pg_foreign_server, pg_subscription;
