//! The names of settings: what `--help` shows, and what the file may have.

/// Every name that can be set, with its default for people and what it is.
pub const NAMES: &[(&str, &str, &str)] = &[
    (
        "EXTERNAL_API_ENABLED",
        "unset",
        "pins the switch external_api.enabled",
    ),
    (
        "EXTERNAL_API_CANARY_ONLY",
        "unset",
        "pins the switch external_api.canary_only",
    ),
    (
        "WEBHOOKS_ENABLED",
        "unset",
        "pins the switch webhooks.enabled",
    ),
    (
        "WEBHOOKS_DELIVERY_ENABLED",
        "unset",
        "pins the switch webhooks.delivery.enabled",
    ),
    (
        "WEBHOOKS_MAX_ATTEMPTS",
        "3",
        "attempts of a delivery, 1 to 20",
    ),
    (
        "WEBHOOKS_BACKOFF_SECONDS",
        "60,300,900",
        "waits after failed attempts",
    ),
    (
        "WEBHOOKS_REPLAY_WINDOW_SECONDS",
        "300",
        "the greatest age of a signature that leaves",
    ),
    (
        "WEBHOOKS_DELIVERY_LOOP_SECONDS",
        "5",
        "upper bound of the poll for due deliveries",
    ),
    (
        "WEBHOOKS_CONCURRENCY",
        "512",
        "attempts under way on this node",
    ),
    (
        "ADVERTISE_URL",
        "none",
        "where other nodes reach this one, for the workers connected to them",
    ),
    (
        "EMBEDDED_WORKER",
        "1",
        "whether this node sends webhooks itself; 0 leaves it to `onering worker`",
    ),
    (
        "BREAKER_FAILURES_TO_OPEN",
        "5",
        "failures in a row after which a receiver is left alone; 0: never",
    ),
    (
        "BREAKER_OPEN_SECONDS",
        "60",
        "for how long, before it is asked again",
    ),
    (
        "HOST_MAX_IN_FLIGHT",
        "256",
        "attempts under way to one host, over all subscriptions and nodes; 0: any number",
    ),
    (
        "ENDPOINT_DISABLE_AFTER_DAYS",
        "5",
        "days without a delivery after which a failing subscription is disabled; 0: never",
    ),
    (
        "ALERT_DEAD_LETTER_24H",
        "10",
        "dead letters in 24 hours above which an alert is raised",
    ),
    (
        "ALERT_AUTH_FAILURES_24H",
        "50",
        "refused credentials in 24 hours above which an alert is raised",
    ),
    (
        "ALERT_RATE_LIMIT_HITS_24H",
        "100",
        "calls refused for a limit in 24 hours above which an alert is raised",
    ),
    (
        "ALERT_REPLAY_REJECTED_24H",
        "20",
        "too old signatures in 24 hours above which an alert is raised",
    ),
    (
        "ALERT_LATENCY_P90_SECONDS",
        "5",
        "seconds from publish to delivered (p90) above which an alert is raised",
    ),
    (
        "DATABASE_URL",
        "sqlite:// in the data folder",
        "sqlite://FILE or postgres://…",
    ),
    (
        "REDIS_URL",
        "none",
        "redis://HOST:PORT; lends most of each limit",
    ),
    (
        "LIMITER_FAIL_OPEN",
        "share",
        "`share`, `none` or tiers whose calls pass while a limit can't be decided",
    ),
    (
        "MASTER_KEY",
        "none",
        "base64 of 32 bytes; seals secrets at rest",
    ),
    ("MASTER_KEY_FILE", "none", "a file that holds it"),
    (
        "DATA_DIR",
        "see docs",
        "the embedded database and made keys",
    ),
    (
        "BOOTSTRAP_ADMIN_KEY",
        "none",
        "the first admin key of an empty store",
    ),
    (
        "MONITORING_OPEN",
        "0 (1 in dev)",
        "whether monitoring takes no key",
    ),
    (
        "REQUIRE_OWN_SCOPES",
        "0",
        "whether consumers must name OneRing's own scopes",
    ),
    (
        "TRUSTED_PROXY_HOPS",
        "0",
        "proxies in front whose X-Forwarded-For is believed, 0 to 16",
    ),
    (
        "STALE_SECONDS",
        "10",
        "how long to go on without the database",
    ),
    (
        "ALLOWED_ENDPOINT_CIDRS",
        "none",
        "addresses that receivers may have beyond public ones",
    ),
    (
        "ALLOW_HTTP_ENDPOINTS",
        "0",
        "whether receivers may be http://",
    ),
    (
        "ENDPOINT_CHALLENGE",
        "0",
        "whether a receiver must answer a challenge before it gets webhooks",
    ),
    (
        "ENDPOINT_CA_FILE",
        "none",
        "certificates (PEM) that receivers may use beyond public ones",
    ),
    (
        "EGRESS_PROXY",
        "none",
        "http://HOST:PORT through which deliveries go",
    ),
    ("LISTEN", "127.0.0.1:8000", "the address to listen on"),
    ("TLS_CERT", "none", "certificate chain (PEM)"),
    ("TLS_KEY", "none", "its key (PEM)"),
    (
        "TLS_CLIENT_CA",
        "none",
        "asks clients for a certificate of this authority (PEM)",
    ),
    (
        "TIERS",
        "free=100,pro=1000,enterprise=10000",
        "tiers and their calls an hour",
    ),
    (
        "EVENT_MAX_BYTES",
        "262144",
        "the greatest payload of an event",
    ),
    ("FAN_OUT_MAX", "1000", "the most deliveries of one event"),
    ("QUOTA_SUBSCRIPTIONS", "1000", "subscriptions of a tenant"),
    (
        "QUOTA_STORED_BYTES",
        "107374182400",
        "bytes of stored events of a tenant",
    ),
    ("RETENTION_DAYS", "30", "how long history is kept"),
    (
        "SESSION_SECONDS",
        "10",
        "how long a node lives without the database, 2 to 20",
    ),
    (
        "DRAIN_SECONDS",
        "2 (0 in dev)",
        "how long a stop still answers while health says that it leaves",
    ),
    (
        "SHUTDOWN_SECONDS",
        "10",
        "how long a stop waits for what is under way",
    ),
    (
        "NODE_NAME",
        "the host's",
        "this node's name in logs and attempts",
    ),
    ("LOG", "info", "log levels, such as `info,onering=debug`"),
    ("LOG_FORMAT", "text", "`text` or `json`"),
];

/// Names of other programs of ours: the command's, and the tests'.
pub(super) const OTHER: &[&str] = &["CONFIG", "URL", "ADMIN_KEY"];
