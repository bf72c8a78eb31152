-- Nullable and without a default: no row is written, and the version before, which
-- names its columns, goes on reading and writing beside it. Whoever reads for long
-- (a backup) holds this up, and this would hold up whoever comes after: it gives up
-- soon, and the next start tries again.
set local lock_timeout = '3s';
-- 2: a stream takes its deliveries; null: they are POSTed.
alter table subscriptions add column kind smallint;
-- In microseconds; null for one that stays. Beginning anew writes no revision.
alter table subscriptions add column lifetime bigint;
alter table subscriptions add column ends_at bigint;
create index subscriptions_end on subscriptions (ends_at) where ends_at is not null;
-- Where other nodes reach this one; null where they can't.
alter table nodes add column url text;
