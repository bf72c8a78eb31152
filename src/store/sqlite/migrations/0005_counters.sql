-- What is counted of deliveries, by the minute. Each statement that changes
-- deliveries adds to it in the same transaction. `what` is a code (see the
-- module `counter`).
create table counters (
  part integer not null,
  tenant blob not null,
  minute integer not null,
  sid integer not null,
  what integer not null,
  n integer not null,
  primary key (part, tenant, minute, sid, what)
) without rowid;
create index counters_minute on counters (part, minute);

-- Minutes that are over for long: states that history takes along by the day,
-- all else as of day 0.
create table counter_days (
  part integer not null,
  tenant blob not null,
  day integer not null,
  what integer not null,
  n integer not null,
  primary key (part, tenant, day, what)
) without rowid;

-- What there is from before it was counted.
insert into counter_days (part, tenant, day, what, n)
select part, tenant, 0, state, count(*) from queue group by part, tenant, state
union all
select part, tenant, 0, state, count(*) from dead group by part, tenant, state
union all
select part, tenant, day, state, count(*) from done group by part, tenant, day, state;

-- Lists over all subscriptions, by a state that few rows have.
create index done_undelivered on done (part, id) where state <> 4;
create index dead_expired on dead (part, id) where state <> 6;
create index queue_retrying on queue (part, id) where state = 3;
create index queue_failed on queue (part, id) where state = 5;
