-- Whether partitions may be handed over to a node: one of the version before takes
-- what it is given as soon as it runs, and says nothing of it.
alter table nodes add column ready boolean not null default true;

-- How far this database has come, on its clock. What a node has seen of it is also noted
-- outside the database: a backup that is restored is behind that. `server` is where it
-- ran last; `restored` says why deliveries are held, and is empty where they are not. A
-- restore that is accepted begins another timeline with an id of its own.
create table timeline (
  id uuid not null,
  mark bigint not null,
  server text not null,
  restored text not null
);
insert into timeline (id, mark, server, restored) values (gen_random_uuid(), 0, '', '');
