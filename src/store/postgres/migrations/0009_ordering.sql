-- Ordering. A delivery with an ordering key is due only while it is its key's
-- head; what waits behind the head is due never (9223372036854775807). That a key
-- has one head, and who is next, is kept up by triggers: whichever statement moves
-- a row, in its own transaction. Rows without a key pay for a look at a null.
alter table subscriptions add column ordering smallint not null default 0;
alter table queue add column okey text collate "C", add column oseq bigint;
alter table dead add column okey text collate "C", add column oseq bigint;
create index queue_order on queue (part, sub, okey, oseq) where okey is not null;

-- A row for each key of which something is queued, or that a dead delivery blocks.
-- Whoever publishes to a key or frees it holds its row's lock. `seq`: the last place
-- that was given, about the time of it. `blocked`: by the head, which is dead: 1 its
-- followers wait, 3 they are parked; since `at`.
create table order_keys (
  part smallint not null,
  sub uuid not null,
  okey text collate "C" not null,
  seq bigint not null,
  head uuid,
  blocked smallint not null,
  at bigint not null,
  primary key (part, sub, okey)
) with (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,
        autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create index order_keys_blocked on order_keys (part, sub, blocked) where blocked > 0;

-- A row comes into the queue: a new one, behind all others of its key, or a dead one
-- that is retried, at its old place. Where its key is idle, or waits for this very
-- row, it is the head.
create function order_in() returns trigger language plpgsql as $$
declare
  k order_keys;
begin
  insert into order_keys as o (part, sub, okey, seq, head, blocked, at)
  values (new.part, new.sub, new.okey, coalesce(new.oseq, now_us()), new.id, 0, 0)
  on conflict (part, sub, okey) do update
    set seq = case when new.oseq is null then greatest(o.seq + 1, excluded.seq) else o.seq end,
        blocked = case when o.head = excluded.head then 0 else o.blocked end
  returning * into k;
  new.oseq := coalesce(new.oseq, k.seq);
  if k.head <> new.id then
    new.due_at := 9223372036854775807;
  end if;
  return new;
end $$;
create trigger order_in before insert on queue
  for each row when (new.okey is not null) execute function order_in();

-- A row leaves the queue. Of one that is not the head nothing follows, and its key is
-- not locked: whoever waits for such a row holds that lock.
create function order_left() returns trigger language plpgsql as $$
begin
  update order_keys set head = null
  where part = old.part and sub = old.sub and okey = old.okey and head = old.id and blocked = 0;
  return null;
end $$;
create trigger order_left after delete on queue
  for each row when (old.okey is not null) execute function order_left();

-- A key without a head: the first of those that wait is the next one, which is due
-- since it was published. A key of which nothing waits is gone. Each statement sees
-- what was committed while the key's lock was waited for; a row that is being
-- deleted is waited for and passed over.
create function order_next() returns trigger language plpgsql
  set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  next uuid;
  first bigint;
begin
  loop
    select id into next from queue
    where part = new.part and sub = new.sub and okey = new.okey order by oseq limit 1 for update;
    exit when found;
    select oseq into first from queue
    where part = new.part and sub = new.sub and okey = new.okey order by oseq limit 1;
    exit when not found;
  end loop;
  if next is null then
    delete from order_keys where part = new.part and sub = new.sub and okey = new.okey;
  else
    update queue set due_at = least(oseq, now_us())
    where part = new.part and id = next and due_at = 9223372036854775807 and state <> 5;
    update order_keys set head = next where part = new.part and sub = new.sub and okey = new.okey;
  end if;
  return null;
end $$;
create trigger order_next after update of head on order_keys
  for each row when (new.head is null) execute function order_next();

-- A head dies: what follows is as its subscription says at that moment.
create function order_died() returns trigger language plpgsql as $$
begin
  update order_keys k
  set blocked = s.ordering, at = new.dead_at
  from subscriptions s
  where k.part = new.part and k.sub = new.sub and k.okey = new.okey and k.head = new.id
    and s.id = new.sub and s.ordering in (1, 3);
  return new;
end $$;
create trigger order_died before insert on dead
  for each row when (new.okey is not null) execute function order_died();

-- A dead head is gone from the dead letters, and not back in the queue: its key goes
-- on without it.
create function order_saved() returns trigger language plpgsql as $$
begin
  update order_keys set head = null, blocked = 0
  where part = old.part and sub = old.sub and okey = old.okey and head = old.id and blocked > 0;
  return null;
end $$;
create trigger order_saved after delete on dead
  for each row when (old.okey is not null) execute function order_saved();
