-- Nullable and without a default: no row is written, and the version before, which
-- names its columns, goes on reading and writing beside it. Whoever reads for long
-- (a backup) holds this up, and this would hold up whoever comes after: it gives up
-- soon, and the next start tries again. Days that are made from now on have the
-- column by their parent.
set local lock_timeout = '3s';
alter table subscriptions add column filter text;
alter table events add column trace bytea;
alter table kept_bodies add column trace bytea;
