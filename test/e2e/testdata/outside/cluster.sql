-- Run in database postgres of production.
CREATE ROLE fdw_user LOGIN PASSWORD 'sekret-of-fdw';
CREATE ROLE link_user LOGIN PASSWORD 'sekret-of-link';
CREATE ROLE trusted LOGIN;
CREATE ROLE former LOGIN PASSWORD 'sekret-of-former';
CREATE DATABASE shop OWNER app;
CREATE DATABASE frozen;
