-- What is known of a subscription's receiver, written by the owner of its partition
-- when it changes, each time with the next `gen`. A row is missing for one of whom
-- there is nothing to tell. `until`, `opened_at`: on the store's clock. `outage_since`,
-- `outages` (JSON): on the partition's running time, which stands still while
-- delivery is off. 0 where there is no such time.
create table subscription_state (
  part integer not null,
  sub blob not null,
  tenant blob not null,
  gen integer not null,
  breaker integer not null,
  failures integer not null,
  opened_at integer not null,
  until integer not null,
  outage_since integer not null,
  outages text not null,
  failing_since integer not null,
  warned integer not null,
  asked integer not null,
  primary key (part, sub)
) without rowid;

-- How a receiver is spared, as JSON. Nullable and without a default: no row is written.
alter table subscriptions add column limits text;
