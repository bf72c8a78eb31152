-- Whether partitions may be handed over to a node: one of the version before takes
-- what it is given as soon as it runs, and says nothing of it.
alter table nodes add column ready integer not null default 1;
