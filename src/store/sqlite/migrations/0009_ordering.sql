-- Ordering. A delivery with an ordering key is due only while it is its key's
-- head; what waits behind the head is due never (9223372036854775807). That a key
-- has one head, and who is next, is kept up by triggers: whichever statement moves
-- a row, in its own transaction.
alter table subscriptions add column ordering integer not null default 0;
alter table queue add column okey text;
alter table queue add column oseq integer;
alter table dead add column okey text;
alter table dead add column oseq integer;
create index queue_order on queue (part, sub, okey, oseq) where okey is not null;

-- A row for each key of which something is queued, or that a dead delivery blocks.
-- `seq`: the last place that was given, about the time of it. `blocked`: by the head,
-- which is dead: 1 its followers wait, 3 they are parked; since `at`.
create table order_keys (
  part integer not null,
  sub blob not null,
  okey text not null,
  seq integer not null,
  head blob,
  blocked integer not null,
  at integer not null,
  primary key (part, sub, okey)
) without rowid;
create index order_keys_blocked on order_keys (part, sub, blocked) where blocked > 0;

-- A row comes into the queue: a new one, behind all others of its key, or a dead one
-- that is retried, at its old place. Where its key is idle, or waits for this very
-- row, it is the head.
create trigger order_in after insert on queue when new.okey is not null begin
  insert into order_keys (part, sub, okey, seq, head, blocked, at)
  values (new.part, new.sub, new.okey, coalesce(new.oseq, new.due_at), new.id, 0, 0)
  on conflict (part, sub, okey) do update
    set seq = case when new.oseq is null then max(order_keys.seq + 1, excluded.seq) else order_keys.seq end,
        blocked = case when order_keys.head = excluded.head then 0 else order_keys.blocked end;
  update queue set
    oseq = coalesce(new.oseq, (select seq from order_keys where part = new.part and sub = new.sub and okey = new.okey)),
    due_at = case when (select head from order_keys where part = new.part and sub = new.sub and okey = new.okey) = new.id
                  then new.due_at else 9223372036854775807 end
  where part = new.part and id = new.id;
end;

-- A row leaves the queue. Of one that is not the head nothing follows.
create trigger order_left after delete on queue when old.okey is not null begin
  update order_keys set head = null
  where part = old.part and sub = old.sub and okey = old.okey and head = old.id and blocked = 0;
end;

-- A key without a head: the first of those that wait is the next one, which is due
-- since it was published. A key of which nothing waits is gone.
create trigger order_next after update of head on order_keys when new.head is null begin
  update order_keys
  set head = (select id from queue where part = new.part and sub = new.sub and okey = new.okey
              order by oseq limit 1)
  where part = new.part and sub = new.sub and okey = new.okey;
  update queue set due_at = min(oseq, cast(unixepoch('subsec') * 1000000 as integer))
  where part = new.part and due_at = 9223372036854775807 and state <> 5
    and id = (select head from order_keys where part = new.part and sub = new.sub and okey = new.okey);
  delete from order_keys
  where part = new.part and sub = new.sub and okey = new.okey and head is null;
end;

-- A head dies: what follows is as its subscription says at that moment.
create trigger order_died after insert on dead when new.okey is not null begin
  update order_keys
  set blocked = (select ordering from subscriptions where id = new.sub), at = new.dead_at
  where part = new.part and sub = new.sub and okey = new.okey and head = new.id
    and exists (select 1 from subscriptions where id = new.sub and ordering in (1, 3));
end;

-- A dead head is gone from the dead letters, and not back in the queue: its key goes
-- on without it.
create trigger order_saved after delete on dead when old.okey is not null begin
  update order_keys set head = null, blocked = 0
  where part = old.part and sub = old.sub and okey = old.okey and head = old.id and blocked > 0;
end;
