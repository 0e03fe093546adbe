-- Run in database postgres, as superuser.
CREATE ROLE staff NOLOGIN ROLE app;
CREATE ROLE report LOGIN PASSWORD 'sekret-of-report' CONNECTION LIMIT 7 VALID UNTIL '2031-02-03 04:05:06+00';
CREATE ROLE "Odd ""Role" NOINHERIT CREATEDB BYPASSRLS;
GRANT pg_read_all_data TO report WITH ADMIN OPTION;
CREATE DATABASE shop OWNER app;
CREATE DATABASE icu TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'de-AT';
CREATE DATABASE "Old Latin" TEMPLATE template0 ENCODING LATIN1 LOCALE 'C' CONNECTION LIMIT 9;
ALTER DATABASE shop SET geqo_effort = 3;
ALTER DATABASE shop SET default_statistics_target = 55;
ALTER ROLE app SET work_mem = '3MB';
ALTER ROLE app SET enable_mergejoin = off;
ALTER ROLE app IN DATABASE shop SET seq_page_cost = 1.3;
ALTER ROLE ALL SET lock_timeout = '77s';
COMMENT ON DATABASE shop IS 'the shop; it''s real';
