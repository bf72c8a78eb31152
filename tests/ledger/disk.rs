//! A disk that is full for a while, beneath SQLite.

use std::{sync::Arc, time::Duration};

use super::{Load, Place, Server, Setup, end, settle};
use crate::support::{
    contract::on_sqlite,
    wait::{until, until_after},
};

/// A file that takes the room.
const BALLAST: &str = "ballast";
const DISK: &str = "24m";

/// Runs a command with a small disk of its own at a folder.
fn within(folder: &str) -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let root = status.lines().any(|l| l.starts_with("Uid:\t0\t"));
    let own = if root { "-m" } else { "-Urm" };
    let mount = format!("mount -t tmpfs -o size={DISK} none {folder} && exec \"$@\"");
    ["unshare", own, "sh", "-c", &mount, "sh"]
        .map(str::to_owned)
        .into()
}

// H1: while the disk is full publishes are refused, nothing that was accepted is
// lost, and all goes on once there is room.
#[test]
fn sqlite_goes_on_after_a_full_disk() {
    on_sqlite(|_| async {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let setup = Setup {
            database: format!("sqlite://{path}/onering.db"),
            within: within(&path),
            ..Setup::default()
        };
        let nodes = vec![Server::start(setup, 0).await];
        let url = nodes[0].url();
        let place = Place::prepare(&url, Arc::default()).await;
        // What the server's own eyes see, not this process'.
        let inside = format!("/proc/{}/root{path}", nodes[0].id());
        let load = Load::start(&place, &[nodes[0].address()]);
        until("every tenant is delivered to", async || {
            place.each_tenant_since(None).then_some(())
        })
        .await;
        let mut turn = 0;
        for _ in 0..3 {
            fill(&format!("{inside}/{BALLAST}")).await;
            until_after(
                Duration::from_secs(60),
                "publishes are refused",
                async || {
                    turn += 1;
                    place.is_refused(&url, turn).await.then_some(())
                },
            )
            .await;
            let full = std::time::Instant::now();
            tokio::time::sleep(Duration::from_secs(1)).await;
            tokio::fs::remove_file(format!("{inside}/{BALLAST}"))
                .await
                .unwrap();
            let room = std::time::Instant::now();
            until_after(Duration::from_secs(60), "deliveries go on", async || {
                place.each_tenant_since(Some(room)).then_some(())
            })
            .await;
            place.book.troubled(full, Duration::from_secs(2));
        }
        load.stop().await;
        settle(&place, &url).await;
        // Its file can't be opened from outside.
        end(None, &place, &nodes).await;
    });
}

/// Writes until there is no room.
async fn fill(path: &str) {
    use tokio::io::AsyncWriteExt as _;
    let mut file = tokio::fs::File::create(path).await.unwrap();
    for size in [1 << 16, 1 << 12] {
        let block = vec![0; size];
        loop {
            let written = file.write_all(&block).await;
            if written.is_err() || file.flush().await.is_err() {
                break;
            }
        }
    }
}
