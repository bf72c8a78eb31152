//! The server that is measured: one that runs already, or one of our own with
//! its database.

use std::time::{Duration, Instant};

use super::{
    args::{TargetArgs, is_postgres},
    error::{BenchError, Result},
    monitoring::{self, History},
    postgres::Scratch,
    process,
    scenario::{Bench, Probes},
    server::{Folder, Server, random},
    setup::{Access, Session, authority},
};

/// A server with a key to use it.
#[derive(Debug)]
pub(super) struct Deployment {
    /// Its database, in one word.
    pub database: &'static str,
    /// The key.
    pub session: Session,
    server: Option<Server>,
    scratch: Option<Scratch>,
}

impl Deployment {
    /// Takes the running server, or starts one with `database` (`sqlite` or a URL).
    pub(super) async fn start(bench: &Bench, args: &TargetArgs, database: &str) -> Result<Self> {
        let tag = hex::encode(random::<4>()?);
        let receivers = args
            .advertise
            .clone()
            .unwrap_or_else(|| format!("http://{}", bench.receivers.address));
        let access = |authority: String, admin_key: Option<String>, key: Option<String>| Access {
            authority,
            key,
            admin_key,
            receivers: receivers.trim_end_matches('/').to_owned(),
            tag: tag.clone(),
            idempotency: args.idempotency,
        };
        if let Some(url) = &args.url {
            let access = access(authority(url)?, args.admin_key.clone(), args.key.clone());
            return Ok(Self {
                database: "running server",
                session: Session::open(access).await?,
                server: None,
                scratch: None,
            });
        }
        let (label, scratch) = if is_postgres(database) {
            ("PostgreSQL", Some(Scratch::create(database, &tag).await?))
        } else {
            ("SQLite", None)
        };
        match Self::started(bench, args, scratch.as_ref(), &tag, access).await {
            Ok((server, session)) => Ok(Self {
                database: label,
                session,
                server: Some(server),
                scratch,
            }),
            Err(e) => {
                if let Some(scratch) = scratch {
                    scratch.drop().await.ok();
                }
                Err(e)
            }
        }
    }

    async fn started(
        bench: &Bench,
        args: &TargetArgs,
        scratch: Option<&Scratch>,
        tag: &str,
        access: impl FnOnce(String, Option<String>, Option<String>) -> Access,
    ) -> Result<(Server, Session)> {
        let folder = Folder::create(args.data_dir.as_deref(), tag)?;
        let data = folder.path().display().to_string();
        let mut server =
            Server::prepare(scratch.map(|s| s.url.as_str()), &args.server_env, folder)?;
        if args.stored > 0 {
            let history = History {
                deliveries: args.stored,
                tenants: 1,
                days: 30,
            };
            let (database, _) = server.store_settings()?;
            monitoring::fill(&database, history, &bench.progress).await?;
        }
        server.start().await?;
        let where_ = scratch.map_or(data, |_| "PostgreSQL".into());
        bench.progress.say(&format!(
            "a server runs on {}, its data in {where_}",
            server.authority
        ));
        let access = access(
            server.authority.clone(),
            Some(server.admin_key.clone()),
            None,
        );
        match Session::open(access).await {
            Ok(session) => Ok((server, session)),
            Err(e) => {
                server.stop().await.ok();
                Err(e)
            }
        }
    }

    /// What can be read about it beside its answers.
    #[must_use]
    pub(super) fn probes(&self) -> Probes<'_> {
        Probes {
            server: self.server.as_ref().and_then(Server::pid),
            scratch: self.scratch.as_ref(),
        }
    }

    /// The server's resident memory when nothing happens, in bytes. // B13
    pub(super) async fn idle_resident(&self) -> Option<u64> {
        let pid = self.server.as_ref()?.pid()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        process::resident(pid)
    }

    /// Stops the server and starts it again; how long from the start of the
    /// process until `me` is answered with 200. The database is there already. // B14
    pub(super) async fn restart(&mut self) -> Result<Option<Duration>> {
        let Some(server) = &mut self.server else {
            return Ok(None);
        };
        server.stop().await?;
        let began = Instant::now();
        server.spawn()?;
        while !self.session.is_served().await {
            server.check_alive()?;
            if began.elapsed() > Duration::from_mins(1) {
                return Err(BenchError::NotReached(
                    "the server didn't come back within 60 s".into(),
                ));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(Some(began.elapsed()))
    }

    /// Removes what was made and stops what was started.
    pub(super) async fn stop(mut self) -> Result<()> {
        let stopped = if let Some(server) = &mut self.server {
            // Its database goes with it: there is nothing to tidy up in there.
            server.stop().await
        } else {
            self.session.close().await;
            Ok(())
        };
        let dropped = match self.scratch {
            Some(scratch) => scratch.drop().await,
            None => Ok(()),
        };
        stopped.and(dropped)
    }
}
