//! Settings: defaults, then the file that `ONERING_CONFIG` names (TOML), then
//! the environment. The file has the environment's names in lower case without
//! `ONERING_`.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fmt,
    net::SocketAddr,
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use zeroize::Zeroizing;

use crate::{
    domain::{breaker, delivery::Schedule, switch::Switch},
    limiter::Undecided,
    store::Database,
};

mod names;
mod source;

pub use names::NAMES;
pub use source::BadSetting;
use source::Source;

/// The four switches as this node's settings pin them; none: the stored switch
/// rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pins {
    /// `external_api.enabled`
    pub api: Option<bool>,
    /// `external_api.canary_only`
    pub canary_only: Option<bool>,
    /// `webhooks.enabled`
    pub webhooks: Option<bool>,
    /// `webhooks.delivery.enabled`
    pub delivery: Option<bool>,
}

impl Pins {
    /// What a switch is pinned to.
    #[must_use]
    pub fn of(&self, switch: Switch) -> Option<bool> {
        match switch {
            Switch::Api => self.api,
            Switch::CanaryOnly => self.canary_only,
            Switch::Webhooks => self.webhooks,
            Switch::Delivery => self.delivery,
        }
    }

    /// The names of the pinned switches, with commas between them.
    #[must_use]
    pub fn names(&self) -> String {
        let pinned = Switch::ALL.into_iter().filter(|s| self.of(*s).is_some());
        pinned.map(Switch::name).collect::<Vec<_>>().join(",")
    }
}

/// The master key: 32 bytes that seal every stored secret.
#[derive(Clone)]
pub struct MasterKey(pub Zeroizing<[u8; 32]>);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey")
    }
}

impl FromStr for MasterKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use base64::Engine as _;
        let bytes = Zeroizing::new(
            base64::engine::general_purpose::STANDARD
                .decode(text.trim())
                .map_err(|_| "base64 of 32 bytes")?,
        );
        let key = <[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| "base64 of 32 bytes")?;
        Ok(Self(Zeroizing::new(key)))
    }
}

/// Where TLS comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Private key, PEM.
    pub key: PathBuf,
    /// The authority that clients' certificates must be of.
    pub client_ca: Option<PathBuf>,
}

/// What an alert is raised above.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// Dead letters in the last 24 hours.
    pub dead_letter_24h: i64,
    /// Refused credentials in the last 24 hours.
    pub auth_failures_24h: i64,
    /// Calls refused for a limit in the last 24 hours.
    pub rate_limit_hits_24h: i64,
    /// Attempts whose signature was too old to leave, in the last 24 hours.
    pub replay_rejected_24h: i64,
    /// Publish to delivered, the 90th percentile of the last 24 hours.
    pub latency_p90_seconds: f64,
}

/// What can change while the server runs.
#[derive(Debug, Clone)]
pub struct Live {
    /// The pinned switches.
    pub pins: Pins,
    /// What alerts are raised above.
    pub thresholds: Thresholds,
    /// The schedule of subscriptions that name none.
    pub schedule: Schedule,
    /// When breakers open, of subscriptions that don't say it.
    pub breaker: breaker::Settings,
    /// Attempts under way to one host, over all subscriptions and nodes; 0: any number.
    pub host_max_in_flight: usize,
    /// A subscription of which nothing is delivered for so long is disabled; 0: none is.
    pub endpoint_disable_after: Duration,
    /// The greatest age of a signature that leaves.
    pub replay_window: Duration,
    /// Whether monitoring takes no key; where it is not set it takes one.
    pub monitoring_open: Option<bool>,
    /// Whether consumers must name OneRing's own scopes.
    pub require_own_scopes: bool,
    /// Proxies in front of every node, whose entries in `X-Forwarded-For` are
    /// believed. 0: callers connect by themselves.
    pub trusted_proxy_hops: usize,
    /// How long to go on without the database.
    pub stale: Duration,
    /// Calls an hour by tier.
    pub tiers: BTreeMap<String, i64>,
    /// Tiers whose calls pass while a limit can't be decided; none: up to what is
    /// known to be left.
    pub limiter_fail_open: Option<BTreeSet<String>>,
    /// The greatest payload.
    pub event_max_bytes: usize,
    /// The most deliveries of one event.
    pub fan_out_max: usize,
    /// Subscriptions of a tenant.
    pub quota_subscriptions: i64,
    /// Stored bytes of a tenant.
    pub quota_stored_bytes: i64,
    /// Days of history.
    pub retention_days: i32,
    /// Receivers' addresses beyond public ones.
    pub allowed_endpoints: Vec<IpNet>,
    /// Whether receivers may be http.
    pub allow_http: bool,
    /// Whether receivers must prove that they want webhooks.
    pub endpoint_challenge: bool,
}

impl Live {
    /// What becomes of a tier's calls while their limit can't be decided.
    #[must_use]
    pub fn undecided(&self, tier: &str) -> Undecided {
        match &self.limiter_fail_open {
            None => Undecided::Share,
            Some(tiers) if tiers.contains(tier) => Undecided::Pass,
            Some(_) => Undecided::Refuse,
        }
    }
}

/// All settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What can change while the server runs.
    pub live: Live,
    /// The store.
    pub database: Option<Database>,
    /// Redis.
    pub redis: Option<String>,
    /// The key that seals secrets.
    pub master_key: Option<MasterKey>,
    /// Where the embedded database and made keys are.
    pub data_dir: Option<PathBuf>,
    /// The first admin key.
    pub bootstrap_key: Option<Zeroizing<String>>,
    /// Where to listen.
    pub listen: SocketAddr,
    /// TLS.
    pub tls: Option<Tls>,
    /// Upper bound of the poll.
    pub delivery_loop: Duration,
    /// Attempts under way on this node.
    pub concurrency: usize,
    /// Where other nodes reach this one, for their workers.
    pub advertise_url: Option<String>,
    /// Whether this process sends what goes over HTTP itself, or leaves it to
    /// workers that connect.
    pub embedded_worker: bool,
    /// Extra authorities for receivers.
    pub endpoint_ca: Option<PathBuf>,
    /// The proxy that deliveries go through.
    pub egress_proxy: Option<url::Url>,
    /// A node's life without the database.
    pub session: Duration,
    /// How long a stop still takes calls, while health says that the node leaves.
    pub drain: Duration,
    /// How long a stop waits.
    pub shutdown: Duration,
    /// This node's name.
    pub node_name: String,
    /// Log levels.
    pub log: String,
    /// Whether logs are JSON.
    pub log_json: bool,
    /// Set names that mean nothing.
    pub unknown: Vec<String>,
}

fn backoff(text: &str) -> Option<Vec<u32>> {
    let waits: Option<Vec<u32>> = text
        .split(',')
        .map(|w| w.trim().parse().ok().filter(|n| (1..=86_400).contains(n)))
        .collect();
    waits.filter(|w| w.len() <= 20)
}

fn tiers(text: &str) -> Option<BTreeMap<String, i64>> {
    text.split(',')
        .map(|entry| {
            let (name, limit) = entry.split_once('=')?;
            let limit = limit.trim().parse().ok().filter(|n| *n > 0)?;
            Some((name.trim().to_owned(), limit)).filter(|(n, _)| !n.is_empty())
        })
        .collect()
}

fn thresholds(source: &Source) -> Result<Thresholds, BadSetting> {
    let count = |name, default| source.number(name, default, 0, 1_000_000_000);
    Ok(Thresholds {
        dead_letter_24h: count("ALERT_DEAD_LETTER_24H", 10)?,
        auth_failures_24h: count("ALERT_AUTH_FAILURES_24H", 50)?,
        rate_limit_hits_24h: count("ALERT_RATE_LIMIT_HITS_24H", 100)?,
        replay_rejected_24h: count("ALERT_REPLAY_REJECTED_24H", 20)?,
        latency_p90_seconds: source.number("ALERT_LATENCY_P90_SECONDS", 5.0, 0.0, 86_400.0)?,
    })
}

fn live(source: &Source) -> Result<Live, BadSetting> {
    let standard = Schedule::standard();
    Ok(Live {
        pins: Pins {
            api: source.flag("EXTERNAL_API_ENABLED")?,
            canary_only: source.flag("EXTERNAL_API_CANARY_ONLY")?,
            webhooks: source.flag("WEBHOOKS_ENABLED")?,
            delivery: source.flag("WEBHOOKS_DELIVERY_ENABLED")?,
        },
        thresholds: thresholds(source)?,
        schedule: Schedule {
            max_attempts: source.number("WEBHOOKS_MAX_ATTEMPTS", standard.max_attempts, 1, 20)?,
            backoff: source
                .get(
                    "WEBHOOKS_BACKOFF_SECONDS",
                    "at most 20 numbers from 1 to 86400, such as 60,300,900",
                    backoff,
                )?
                .unwrap_or(standard.backoff),
        },
        breaker: breaker::Settings {
            failures_to_open: source.number(
                "BREAKER_FAILURES_TO_OPEN",
                breaker::DEFAULT_FAILURES,
                0,
                1000,
            )?,
            open_seconds: source.number("BREAKER_OPEN_SECONDS", breaker::DEFAULT_OPEN, 1, 3600)?,
        },
        host_max_in_flight: source.number("HOST_MAX_IN_FLIGHT", 256, 0, 1_000_000)?,
        endpoint_disable_after: Duration::from_secs(
            86_400 * source.number("ENDPOINT_DISABLE_AFTER_DAYS", 5, 0, 365)?,
        ),
        replay_window: Duration::from_secs(source.number(
            "WEBHOOKS_REPLAY_WINDOW_SECONDS",
            300,
            1,
            86_400,
        )?),
        monitoring_open: source.flag("MONITORING_OPEN")?,
        require_own_scopes: source.flag("REQUIRE_OWN_SCOPES")?.unwrap_or(false),
        trusted_proxy_hops: source.number("TRUSTED_PROXY_HOPS", 0, 0, 16)?,
        stale: Duration::from_secs(source.number("STALE_SECONDS", 10, 0, 86_400)?),
        tiers: source
            .get(
                "TIERS",
                "names with calls an hour, such as free=100,pro=1000",
                tiers,
            )?
            .unwrap_or_else(|| tiers("free=100,pro=1000,enterprise=10000").unwrap_or_default()),
        limiter_fail_open: source
            .get(
                "LIMITER_FAIL_OPEN",
                "`share`, `none` or names of tiers, such as free,pro",
                |v| match v {
                    "share" => Some(None),
                    "none" => Some(Some(BTreeSet::new())),
                    _ => {
                        let names = v.split(',').map(|n| n.trim().to_owned());
                        let names = names.map(|n| Some(n).filter(|n| !n.is_empty()));
                        names.collect::<Option<_>>().map(Some)
                    }
                },
            )?
            .flatten(),
        event_max_bytes: source.number("EVENT_MAX_BYTES", 262_144, 1, 4_194_304)?,
        fan_out_max: source.number("FAN_OUT_MAX", 1000, 1, 10_000)?,
        quota_subscriptions: source.number("QUOTA_SUBSCRIPTIONS", 1000, 1, 1_000_000)?,
        quota_stored_bytes: source.number("QUOTA_STORED_BYTES", 107_374_182_400, 1, i64::MAX)?,
        retention_days: source.number("RETENTION_DAYS", 30, 1, 3650)?,
        allowed_endpoints: source
            .get(
                "ALLOWED_ENDPOINT_CIDRS",
                "addresses with prefix lengths, such as 10.0.0.0/8,fd00::/8",
                |v| v.split(',').map(|n| n.trim().parse().ok()).collect(),
            )?
            .unwrap_or_default(),
        allow_http: source.flag("ALLOW_HTTP_ENDPOINTS")?.unwrap_or(false),
        endpoint_challenge: source.flag("ENDPOINT_CHALLENGE")?.unwrap_or(false),
    })
}

fn master_key(source: &Source) -> Result<Option<MasterKey>, BadSetting> {
    let bad = |name: &str, read: &str, takes: &str| BadSetting {
        name: format!("ONERING_{name}"),
        read: read.to_owned(),
        takes: takes.to_owned(),
    };
    let takes = "base64 of 32 bytes (`onering keys master` prints one)";
    if let Some(text) = source.text("MASTER_KEY") {
        return match text.parse() {
            Ok(key) => Ok(Some(key)),
            Err(_) => Err(bad("MASTER_KEY", "(not shown)", takes)),
        };
    }
    let Some(path) = source.text("MASTER_KEY_FILE") else {
        return Ok(None);
    };
    let text = Zeroizing::new(
        std::fs::read_to_string(path)
            .map_err(|e| bad("MASTER_KEY_FILE", path, &format!("a readable file ({e})")))?,
    );
    match text.parse() {
        Ok(key) => Ok(Some(key)),
        Err(_) => Err(bad(
            "MASTER_KEY_FILE",
            path,
            &format!("a file that holds {takes}"),
        )),
    }
}

fn tls(source: &Source) -> Result<Option<Tls>, BadSetting> {
    let alone = |name: &str, read: &str, other: &str| BadSetting {
        name: format!("ONERING_{name}"),
        read: read.to_owned(),
        takes: format!("a file, together with ONERING_{other}"),
    };
    match (source.path("TLS_CERT"), source.path("TLS_KEY")) {
        (Some(cert), Some(key)) => Ok(Some(Tls {
            cert,
            key,
            client_ca: source.path("TLS_CLIENT_CA"),
        })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(alone("TLS_KEY", "", "TLS_CERT")),
        (None, Some(_)) => Err(alone("TLS_CERT", "", "TLS_KEY")),
    }
}

impl Settings {
    /// Reads the environment, and the file that it names.
    ///
    /// # Errors
    /// The first value that can't be used.
    pub fn read() -> Result<Self, BadSetting> {
        Self::from_vars(
            env::vars_os().filter_map(|(k, v)| {
                Some((k.to_str()?.to_owned(), v.to_string_lossy().into_owned()))
            }),
        )
    }

    /// Reads these variables as [`read`](Self::read) does the environment.
    ///
    /// # Errors
    /// The first value that can't be used.
    pub fn from_vars(vars: impl Iterator<Item = (String, String)>) -> Result<Self, BadSetting> {
        let source = Source::of(vars)?;
        Ok(Self {
            live: live(&source)?,
            database: source.get(
                "DATABASE_URL",
                "sqlite://FILE or postgres://USER@HOST/DATABASE",
                |v| v.parse().ok(),
            )?,
            redis: source.get("REDIS_URL", "redis://HOST:PORT", |v| {
                let url = url::Url::parse(v).ok()?;
                (url.scheme() == "redis" && url.host().is_some()).then(|| v.to_owned())
            })?,
            master_key: master_key(&source)?,
            data_dir: source.path("DATA_DIR"),
            bootstrap_key: source
                .text("BOOTSTRAP_ADMIN_KEY")
                .map(|v| Zeroizing::new(v.trim().to_owned())),
            listen: source
                .get(
                    "LISTEN",
                    "an address and port, such as 127.0.0.1:8000",
                    |v| v.parse().ok(),
                )?
                .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 8000))),
            tls: tls(&source)?,
            delivery_loop: Duration::from_secs(source.number(
                "WEBHOOKS_DELIVERY_LOOP_SECONDS",
                5,
                1,
                3600,
            )?),
            concurrency: source.number("WEBHOOKS_CONCURRENCY", 512, 1, 65_536)?,
            advertise_url: source.get(
                "ADVERTISE_URL",
                "http://HOST:PORT or https://HOST",
                |v| {
                    let url = url::Url::parse(v).ok()?;
                    let right = matches!(url.scheme(), "http" | "https") && url.host().is_some();
                    right.then(|| v.trim_end_matches('/').to_owned())
                },
            )?,
            embedded_worker: source.flag("EMBEDDED_WORKER")?.unwrap_or(true),
            endpoint_ca: source.path("ENDPOINT_CA_FILE"),
            egress_proxy: source.get("EGRESS_PROXY", "http://[USER:PASSWORD@]HOST:PORT", |v| {
                url::Url::parse(v)
                    .ok()
                    .filter(|u| u.scheme() == "http" && u.host().is_some())
            })?,
            session: Duration::from_secs(source.number("SESSION_SECONDS", 10, 2, 20)?),
            drain: Duration::from_secs(source.number("DRAIN_SECONDS", 2, 0, 600)?),
            shutdown: Duration::from_secs(source.number("SHUTDOWN_SECONDS", 10, 0, 600)?),
            node_name: source
                .text("NODE_NAME")
                .map_or_else(host_name, str::to_owned),
            log: source.text("LOG").unwrap_or("info").to_owned(),
            log_json: source
                .get("LOG_FORMAT", "text or json", |v| match v {
                    "json" => Some(true),
                    "text" => Some(false),
                    _ => None,
                })?
                .unwrap_or(false),
            unknown: source.unknown(),
        })
    }
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| env::var("HOSTNAME").ok())
        .map(|n| n.trim().to_owned())
        .filter(|n| !n.is_empty())
        .unwrap_or_else(|| "node".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Settings, BadSetting> {
        Settings::from_vars(vars.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let s = read(&[]).unwrap();
        assert_eq!(s.live.schedule, Schedule::standard());
        assert_eq!(s.live.pins, Pins::default());
        assert_eq!(s.live.tiers["free"], 100);
        let documented = Thresholds {
            dead_letter_24h: 10,
            auth_failures_24h: 50,
            rate_limit_hits_24h: 100,
            replay_rejected_24h: 20,
            latency_p90_seconds: 5.0,
        };
        assert_eq!(s.live.thresholds, documented);
        assert_eq!(s.listen.to_string(), "127.0.0.1:8000");
        assert_eq!(s.live.replay_window, Duration::from_secs(300));
        let breaker = s.live.breaker;
        assert_eq!((breaker.failures_to_open, breaker.open_seconds), (5, 60));
        assert_eq!(s.live.host_max_in_flight, 256);
        let days = s.live.endpoint_disable_after;
        assert_eq!(days, Duration::from_secs(5 * 86_400));
        assert_eq!(s.delivery_loop, Duration::from_secs(5));
    }

    #[test]
    fn a_bad_value_is_named_with_what_is_allowed() {
        for (name, value, takes) in [
            ("ONERING_WEBHOOKS_ENABLED", "yes", "0, 1, true or false"),
            (
                "ONERING_WEBHOOKS_MAX_ATTEMPTS",
                "0",
                "a number from 1 to 20",
            ),
            (
                "ONERING_ALERT_LATENCY_P90_SECONDS",
                "NaN",
                "a number from 0 to 86400",
            ),
            (
                "ONERING_LISTEN",
                "8000",
                "an address and port, such as 127.0.0.1:8000",
            ),
            (
                "ONERING_DATABASE_URL",
                "mysql://x",
                "sqlite://FILE or postgres://USER@HOST/DATABASE",
            ),
        ] {
            let bad = read(&[(name, value)]).unwrap_err();
            assert_eq!((bad.name.as_str(), bad.read.as_str()), (name, value));
            assert_eq!(bad.takes, takes);
        }
    }

    // K7
    #[test]
    fn tiers_that_fail_open_are_named() {
        let s = read(&[("ONERING_LIMITER_FAIL_OPEN", "free, pro")]).unwrap();
        let open: Vec<&str> = s
            .live
            .limiter_fail_open
            .iter()
            .flatten()
            .map(String::as_str)
            .collect();
        assert_eq!(open, ["free", "pro"]);
        assert_eq!(s.live.undecided("free"), Undecided::Pass);
        assert_eq!(s.live.undecided("enterprise"), Undecided::Refuse);
        let s = read(&[]).unwrap();
        assert_eq!(s.live.undecided("enterprise"), Undecided::Share);
        let s = read(&[("ONERING_LIMITER_FAIL_OPEN", "none")]).unwrap();
        assert_eq!(s.live.undecided("free"), Undecided::Refuse);
        assert!(read(&[("ONERING_LIMITER_FAIL_OPEN", "free,")]).is_err());
        assert!(read(&[("ONERING_REDIS_URL", "http://127.0.0.1")]).is_err());
    }

    #[test]
    fn a_bad_master_key_is_not_repeated() {
        let bad = read(&[("ONERING_MASTER_KEY", "c2VjcmV0")]).unwrap_err();
        assert!(!bad.to_string().contains("c2VjcmV0"), "{bad}");
    }

    #[test]
    fn the_environment_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("onering.toml");
        std::fs::write(&path, "webhooks_max_attempts = 7\nwebhooks_backoff_seconds = [1, 2]\nwebhooks_enabled = true\n")
            .unwrap();
        let s = read(&[
            ("ONERING_CONFIG", path.to_str().unwrap()),
            ("ONERING_WEBHOOKS_MAX_ATTEMPTS", "4"),
        ])
        .unwrap();
        assert_eq!(s.live.schedule.max_attempts, 4);
        assert_eq!(s.live.schedule.backoff, [1, 2]);
        assert_eq!(s.live.pins.webhooks, Some(true));
        std::fs::write(&path, "webhook_enabled = true\n").unwrap();
        let bad = read(&[("ONERING_CONFIG", path.to_str().unwrap())]).unwrap_err();
        assert!(bad.takes.contains("webhook_enabled"), "{bad}");
    }
}
