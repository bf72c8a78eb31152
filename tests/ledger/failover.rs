//! The database's primary dies under load, and its synchronous standby takes its
//! place behind an address that stays (HAProxy).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Load, Place, Server, Setup, end, settle};
use crate::support::{
    cluster::{Balancer, Cluster, free_port, url},
    contract::run_alone,
    store::Db,
    wait::until_after,
};

/// How long nodes may take to go on once there is a primary again.
const GOES_ON: Duration = Duration::from_secs(30);

/// Deliveries on either side.
const SOME: usize = 500;

/// The primary while it answers, else the standby: whether that is the primary by
/// now is the node's to see.
fn configuration(front: u16, primary: u16, standby: u16) -> String {
    format!(
        "defaults
  mode tcp
  timeout connect 1s
  timeout client 1h
  timeout server 1h
frontend database
  bind 127.0.0.1:{front}
  default_backend database
backend database
  default-server check inter 200ms fall 1 rise 1 on-marked-down shutdown-sessions
  server primary 127.0.0.1:{primary}
  server standby 127.0.0.1:{standby} backup
"
    )
}

// H1, N2: nothing is lost, and deliveries go on, with the standby as the primary.
#[test]
fn postgres_fails_over_to_its_standby() {
    run_alone(async {
        let mut primary = Cluster::start().await;
        primary.sql("create database ledger").await;
        let mut standby = primary.standby().await;
        let front = free_port();
        let configuration = configuration(front, primary.port, standby.port);
        let _balancer = Balancer::start(&configuration, front).await;
        let setup = Setup {
            database: url(front, "ledger"),
            ..Setup::default()
        };
        let mut nodes = Vec::new();
        for n in 0..2 {
            nodes.push(Server::start(setup.clone(), n).await);
        }
        let place = Place::prepare(&nodes[0].url(), Arc::default()).await;
        let addresses: Vec<_> = nodes.iter().map(Server::address).collect();
        let load = Load::start(&place, &addresses);
        until_after(GOES_ON, "deliveries are under way", async || {
            (place.book.count() > SOME).then_some(())
        })
        .await;

        let away = Instant::now();
        primary.crash().await;
        // The standby answers meanwhile, and takes no writes.
        tokio::time::sleep(Duration::from_secs(3)).await;
        standby.promote().await;
        let promoted = Instant::now();
        until_after(GOES_ON, "deliveries go on", async || {
            place.each_tenant_since(Some(promoted)).then_some(())
        })
        .await;
        let took = promoted.elapsed();
        let then = place.book.count();
        until_after(GOES_ON, "deliveries go on and on", async || {
            (place.book.count() > then + SOME).then_some(())
        })
        .await;
        place.book.troubled(away, Duration::from_secs(12));
        load.stop().await;
        settle(&place, &nodes[0].url()).await;
        let db = Db::at(&standby.url("ledger"));
        end(Some(&db), &place, &nodes).await;
        eprintln!("deliveries went on {took:.1?} after the promotion");
        db.destroy().await;
    });
}
