-- Nullable and without a default: no row is written.
alter table subscriptions add column filter text;
alter table events add column trace blob;
alter table kept_bodies add column trace blob;
