//! A database that went back in time does not send by itself.

use std::path::Path;

use onering::store::Database;
use serde_json::{Value, json};

use crate::support::{
    app::{TestApp, eventually},
    cluster::Cluster,
    command::onering,
    contract,
    proxy::Proxy,
    receiver::{Receiver, status},
    store::{Db, HOUR},
};

contract![
    what_redis_alone_knows_is_waited_for,
    what_was_left_long_ago_is_sent_once_redis_says_so,
];

/// A backup is made, a delivery is sent after that, and the backup is put back.
struct Story {
    db: Db,
    data: tempfile::TempDir,
    receiver: Receiver,
    app: Option<TestApp>,
}

impl Story {
    async fn begin(db: Db) -> Self {
        let data = tempfile::tempdir().unwrap();
        let receiver = Receiver::answering(|_| status(200)).await;
        let mut app = TestApp::builder(&db)
            .set("DATA_DIR", data.path().display())
            .start()
            .await;
        let hook = json!({"url": receiver.url()});
        app.subscribe(&app.admin, hook).await;
        // It waits for the backup to be made.
        app.reload(&[("WEBHOOKS_DELIVERY_ENABLED", "0")]);
        eventually("nothing is sent", || async {
            (!app.app().context.dispatcher.is_delivering()).then_some(())
        })
        .await;
        app.publish(&app.admin, "a.b", json!({})).await;
        Self {
            db,
            data,
            receiver,
            app: Some(app),
        }
    }

    /// The node, once more, with delivery on.
    async fn start(&mut self, again: crate::support::app::Builder) {
        self.app = Some(again.set("WEBHOOKS_DELIVERY_ENABLED", 1).start().await);
    }

    fn app(&self) -> &TestApp {
        self.app.as_ref().unwrap()
    }

    async fn stop(&mut self) -> crate::support::app::Builder {
        let app = self.app.take().unwrap();
        let again = app.again();
        app.stop().await;
        self.db.close().await;
        again
    }

    /// Time passes after the backup, and what was queued is delivered.
    async fn deliver(&mut self) {
        self.receiver.wait(1).await;
        let store = &self.app().app().context.store;
        store.shift_clock(HOUR).await.unwrap();
        let before = store.timeline().await.unwrap().mark;
        eventually("the node notes how far it has come", || async {
            let seen = read(self.data.path(), self.db.database()).await;
            (seen >= before + HOUR - 60_000_000).then_some(())
        })
        .await;
    }

    /// Changes the subscription and makes a key, which both are lost with the backup.
    async fn change(&self) -> String {
        let app = self.app();
        let list = app.get("/v1/external/webhooks", &app.admin).await.ok();
        let id = list["subscriptions"][0]["id"].as_str().unwrap();
        let path = format!("/v1/external/webhooks/{id}");
        app.patch(&path, &app.admin, json!({"description": "changed"}))
            .await
            .ok();
        let (_, key) = app.key(json!({"scopes": ["read:rings"]})).await;
        app.get("/v1/external/me", &key).await.ok();
        key
    }

    /// What must hold once the backup is in its place: nothing is sent, events are
    /// accepted, and the node says why.
    async fn is_held(&self) {
        let app = self.app();
        assert!(!app.app().context.dispatcher.is_delivering());
        app.publish(&app.admin, "a.b", json!({})).await;
        let health = app.get("/health?deep=true", "").await.ok();
        assert_eq!(health["status"], "degraded", "{health}");
        let worker = &health["checks"]["worker"];
        assert_eq!(worker["restored"], true, "{health}");
        assert_eq!(worker["sending"], false, "{health}");
        let metrics = app.get("/metrics", &app.admin).await;
        assert!(metrics.text().contains("\nonering_restored 1"));
        assert_eq!(self.receiver.count(), 1, "nothing is sent");
    }

    async fn doctor(&self, vars: &[(&str, &str)], args: &[&str], code: i32) -> String {
        let args = [&["doctor", "restored"][..], args].concat();
        let done = onering(&args, vars).await.exits(code);
        done.stdout
    }
}

/// The greatest mark in the files of a folder, or of SQLite's.
async fn read(folder: &Path, database: &Database) -> i64 {
    let folder = match database {
        Database::Sqlite(path) => path.parent().unwrap(),
        Database::Postgres(_) => folder,
    };
    let mut files = tokio::fs::read_dir(folder).await.unwrap();
    let mut greatest = 0;
    while let Some(file) = files.next_entry().await.unwrap() {
        let name = file.file_name().into_string().unwrap();
        if name.starts_with("timeline-") && !name.contains('.') {
            let text = tokio::fs::read_to_string(file.path()).await.unwrap();
            greatest = greatest.max(text.parse().unwrap());
        }
    }
    greatest
}

fn pairs(vars: &std::collections::BTreeMap<String, String>) -> Vec<(&str, &str)> {
    vars.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
}

// N2: a SQLite file that was put back is known by what is noted beside it.
#[test]
fn sqlite_a_restored_file_does_not_send_by_itself() {
    contract::on_sqlite(|db| async move {
        let Database::Sqlite(path) = db.database().clone() else {
            unreachable!()
        };
        let backup = path.with_extension("backup");
        let mut story = Story::begin(db).await;
        let again = story.stop().await;
        tokio::fs::copy(&path, &backup).await.unwrap();
        story.start(again).await;
        story.deliver().await;
        let again = story.stop().await;
        tokio::fs::copy(&backup, &path).await.unwrap();
        story.start(again).await;
        story.is_held().await;

        let vars = story.app().vars().clone();
        let again = story.stop().await;
        let said = story.doctor(&pairs(&vars), &[], 1).await;
        assert!(said.contains("back in time"), "{said}");
        assert!(said.contains("onering doctor restored --accept"), "{said}");
        story.start(again).await;
        story.is_held().await;
        let again = story.stop().await;
        let said = story.doctor(&pairs(&vars), &["--accept"], 0).await;
        assert!(said.contains("accepted"), "{said}");
        story.start(again).await;
        // The one of the backup, once more, and the two since.
        story.receiver.wait(4).await;
        let again = story.stop().await;
        let said = story.doctor(&pairs(&vars), &[], 0).await;
        assert!(said.contains("nothing is held"), "{said}");
        story.start(again).await;
        assert!(
            !story.app().app().context.node.is_restored(),
            "it was accepted"
        );
        drop(story.stop().await);
    });
}

// N2: the files of a PostgreSQL server that were put back are known by what is noted
// in the data folder; it is accepted while the node runs.
#[test]
fn postgres_restored_files_do_not_send_by_themselves() {
    contract::run_alone(async {
        let mut cluster = Cluster::start().await;
        cluster.sql("create database onering").await;
        let db = Db::at(&cluster.url("onering"));
        let mut story = Story::begin(db.clone()).await;
        let again = story.stop().await;
        cluster.stop().await;
        let backup = cluster.copy("backup").await;
        cluster.resume().await;
        story.start(again).await;
        story.deliver().await;
        let again = story.stop().await;
        cluster.stop().await;
        cluster.restore(&backup).await;
        cluster.resume().await;
        story.start(again).await;
        story.is_held().await;
        let vars = story.app().vars().clone();
        story.doctor(&pairs(&vars), &["--accept"], 0).await;
        story.receiver.wait(3).await;
        drop(story.stop().await);
        db.destroy().await;
    });
}

// N2, K5: a backup that is put back beneath a node that runs is known by that node,
// which decides with what it has: not with a key or a subscription of after it.
#[test]
fn postgres_files_restored_beneath_a_node_do_not_send_by_themselves() {
    contract::run_alone(async {
        let mut cluster = Cluster::start().await;
        cluster.sql("create database onering").await;
        let db = Db::at(&cluster.url("onering"));
        let mut story = Story::begin(db.clone()).await;
        let again = story.stop().await;
        cluster.stop().await;
        let backup = cluster.copy("backup").await;
        cluster.resume().await;
        story.start(again).await;
        story.deliver().await;
        let lost = story.change().await;
        cluster.stop().await;
        cluster.restore(&backup).await;
        cluster.resume().await;
        eventually("it is known", || async {
            story.app().app().context.node.is_restored().then_some(())
        })
        .await;
        eventually("it publishes again", || async {
            let app = story.app();
            let event = json!({"event_type": "a.b", "data": 1});
            let answer = app.post("/v1/external/events", &app.admin, event).await;
            (answer.status == 202).then_some(())
        })
        .await;
        eventually("a key of after the backup is not known", || async {
            let answer = story.app().get("/v1/external/me", &lost).await;
            (answer.status == 401).then_some(())
        })
        .await;
        story.is_held().await;
        drop(story.stop().await);
        db.destroy().await;
    });
}

// N2: a dump that is read into another database, as for a test system, is known
// without a note anywhere.
#[test]
fn postgres_a_copy_does_not_send_by_itself() {
    contract::on_postgres(|db| async move {
        let mut story = Story::begin(db.clone()).await;
        let again = story.stop().await;
        story.start(again).await;
        story.receiver.wait(1).await;
        let again = story.stop().await;
        let copy = db.copy().await;
        let other = tempfile::tempdir().unwrap();
        let again = again
            .set(
                "DATABASE_URL",
                crate::support::app::database_url(copy.database()),
            )
            .set("DATA_DIR", other.path().display());
        story.start(again).await;
        story.is_held().await;
        let health: Value = story.app().get("/health?deep=true", "").await.ok();
        assert_eq!(health["checks"]["database"]["status"], "healthy");
        let again = story.stop().await;
        // Where it was it goes on.
        let again = again.set(
            "DATABASE_URL",
            crate::support::app::database_url(db.database()),
        );
        story.start(again).await;
        assert!(!story.app().app().context.node.is_restored());
        drop(story.stop().await);
        copy.destroy().await;
    });
}

/// A node that alone Redis, behind a proxy, is a witness of, with an event to deliver.
struct Witnessed {
    db: Db,
    receiver: Receiver,
    redis: Proxy,
    url: String,
    again: crate::support::app::Builder,
}

impl Witnessed {
    /// The node has run, and was stopped before it could deliver.
    async fn begin(db: Db) -> Self {
        let url = std::env::var("ONERING_TEST_REDIS_URL").unwrap();
        let at = url::Url::parse(&url).unwrap();
        let to = format!("{}:{}", at.host_str().unwrap(), at.port().unwrap_or(6379));
        let redis = Proxy::to(to).await;
        let receiver = Receiver::answering(|_| status(200)).await;
        let app = TestApp::builder(&db)
            .set("REDIS_URL", format!("redis://{}", redis.address))
            .set("WEBHOOKS_DELIVERY_ENABLED", 0)
            .start()
            .await;
        app.subscribe(&app.admin, json!({"url": receiver.url()}))
            .await;
        app.publish(&app.admin, "a.b", json!({})).await;
        let again = app.again().set("WEBHOOKS_DELIVERY_ENABLED", 1);
        app.stop().await;
        db.close().await;
        let this = Self {
            db,
            receiver,
            redis,
            url,
            again,
        };
        this.forget_files().await;
        this
    }

    /// With SQLite the folder was put back as a whole.
    async fn forget_files(&self) {
        let Database::Sqlite(path) = self.db.database() else {
            return;
        };
        let mut files = tokio::fs::read_dir(path.parent().unwrap()).await.unwrap();
        while let Some(file) = files.next_entry().await.unwrap() {
            if file.file_name().to_str().unwrap().starts_with("timeline-") {
                tokio::fs::remove_file(file.path()).await.unwrap();
            }
        }
    }

    /// The database is as it was hours ago.
    async fn go_back(&self) {
        self.db
            .tamper(&format!("update timeline set mark = mark - {}", 2 * HOUR))
            .await;
    }

    /// What Redis has noted is as old as the database.
    async fn was_left_then(&self) {
        let id = match self.db.database() {
            Database::Postgres(_) => "replace(id::text, '-', '')",
            Database::Sqlite(_) => "lower(hex(id))",
        };
        let sql = format!("select {id} || ' ' || cast(mark as text) from timeline");
        let text = self.db.texts(&sql).await.remove(0);
        let (id, mark) = text.split_once(' ').unwrap();
        let client = redis::Client::open(self.url.as_str()).unwrap();
        let mut redis = client.get_multiplexed_async_connection().await.unwrap();
        let before: Option<i64> = redis::cmd("GETSET")
            .arg(format!("onering:timeline:{id}"))
            .arg(mark)
            .query_async(&mut redis)
            .await
            .unwrap();
        assert!(before.is_some(), "it was noted");
    }

    async fn starts_and_waits(self) -> (TestApp, Receiver, Proxy) {
        self.redis.cut();
        let app = self.again.start().await;
        assert!(!app.app().context.dispatcher.is_delivering());
        app.publish(&app.admin, "a.b", json!({})).await;
        let health = app.get("/health?deep=true", "").await.ok();
        let worker = &health["checks"]["worker"];
        assert_eq!(worker["status"], "degraded", "{health}");
        assert_eq!(worker["held"], "witness_unreachable", "{health}");
        assert_eq!(worker["restored"], false, "{health}");
        assert_eq!(worker["sending"], false, "{health}");
        let said = {
            let vars = app.vars().clone();
            // SQLite's file is this node's alone.
            match self.db.database() {
                Database::Sqlite(_) => None,
                Database::Postgres(_) => Some(
                    onering(&["doctor", "restored"], &pairs(&vars))
                        .await
                        .exits(1),
                ),
            }
        };
        if let Some(said) = said {
            assert!(said.stdout.contains("Redis does not answer"), "{said:?}");
        }
        assert_eq!(self.receiver.count(), 0, "nothing is sent");
        (app, self.receiver, self.redis)
    }
}

// N2: while Redis does not say what it has noted, nothing is sent, and nothing noted
// over it.
async fn what_redis_alone_knows_is_waited_for(db: Db) {
    let story = Witnessed::begin(db).await;
    story.go_back().await;
    let (app, receiver, redis) = story.starts_and_waits().await;
    redis.mend();
    eventually("it is known", || async {
        app.app().context.node.is_restored().then_some(())
    })
    .await;
    assert!(!app.app().context.dispatcher.is_delivering());
    assert_eq!(receiver.count(), 0, "nothing is sent");
    app.stop().await;
}

// N2: a node that was away for long does not know of itself that nothing was restored;
// one that was away for a moment does.
async fn what_was_left_long_ago_is_sent_once_redis_says_so(db: Db) {
    let story = Witnessed::begin(db.clone()).await;
    story.go_back().await;
    story.was_left_then().await;
    let (app, receiver, redis) = story.starts_and_waits().await;
    redis.mend();
    receiver.wait(2).await;
    let health = app.get("/health?deep=true", "").await.ok();
    assert!(health["checks"]["worker"]["held"].is_null(), "{health}");
    let again = app.again();
    app.stop().await;
    db.close().await;
    redis.cut();
    let app = again.start().await;
    assert!(app.app().context.dispatcher.is_delivering());
    app.publish(&app.admin, "a.b", json!({})).await;
    receiver.wait(3).await;
    app.stop().await;
}
