-- Nullable and without a default: no row is written.
-- 2: a stream takes its deliveries; null: they are POSTed.
alter table subscriptions add column kind smallint;
-- In microseconds; null for one that stays. Beginning anew writes no revision.
alter table subscriptions add column lifetime bigint;
alter table subscriptions add column ends_at bigint;
create index subscriptions_end on subscriptions (ends_at) where ends_at is not null;
-- Where other nodes reach this one; null where they can't.
alter table nodes add column url text;
