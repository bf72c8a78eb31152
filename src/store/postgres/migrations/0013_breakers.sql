-- What is known of a subscription's receiver, written by the owner of its partition
-- when it changes, each time with the next `gen`. A row is missing for one of whom
-- there is nothing to tell. `until`, `opened_at`: on the store's clock. `outage_since`,
-- `outages` (JSON): on the partition's running time, which stands still while
-- delivery is off. 0 where there is no such time.
create table subscription_state (
  part smallint not null,
  sub uuid not null,
  tenant uuid not null,
  gen bigint not null,
  breaker smallint not null,
  failures integer not null,
  opened_at bigint not null,
  until bigint not null,
  outage_since bigint not null,
  outages text not null,
  failing_since bigint not null,
  warned smallint not null,
  asked smallint not null,
  primary key (part, sub)
);

-- Nullable and without a default: no row is written, and the version before, which
-- names its columns, goes on reading and writing beside it. Whoever reads for long
-- (a backup) holds this up, and this would hold up whoever comes after: it gives up
-- soon, and the next start tries again.
set local lock_timeout = '3s';
-- How a receiver is spared, as JSON.
alter table subscriptions add column limits text;
