-- Run in database frozen of production: what keeps a quarantine from working.
CREATE EXTENSION postgres_fdw;
CREATE SERVER loop FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '@PORT@', dbname 'shop');
CREATE USER MAPPING FOR public SERVER loop OPTIONS (user 'fdw_user', password 'sekret-of-frozen');
CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no DDL here'; END $$;
CREATE EVENT TRIGGER no ON ddl_command_start EXECUTE FUNCTION no();
ALTER EVENT TRIGGER no ENABLE ALWAYS;
ALTER DATABASE frozen SET default_transaction_read_only = on;
