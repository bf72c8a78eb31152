//! Chooses the engine by the URL.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use super::{Result, Store, postgres::Postgres, sqlite::Sqlite};

/// Where the store is.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// A file of this process' own.
    Sqlite(PathBuf),
    /// A server that nodes share.
    Postgres(String),
}

impl FromStr for Database {
    type Err = String;

    fn from_str(url: &str) -> std::result::Result<Self, String> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err("a sqlite:// URL names a file".into());
            }
            Ok(Self::Sqlite(path.into()))
        } else if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            Ok(Self::Postgres(url.to_owned()))
        } else {
            Err("takes sqlite://FILE or postgres://USER@HOST/DATABASE".into())
        }
    }
}

impl fmt::Debug for Database {
    /// Without a password that the URL may hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
            Self::Postgres(url) => match url::Url::parse(url) {
                Ok(u) => write!(
                    f,
                    "postgres://{}{}",
                    u.host_str().unwrap_or_default(),
                    u.path()
                ),
                Err(_) => f.write_str("postgres://…"),
            },
        }
    }
}

/// Opens the store, and brings it to this build's version.
///
/// # Errors
/// Where it can't be reached, or is newer than this build.
pub async fn connect(database: &Database) -> Result<Arc<dyn Store>> {
    Ok(match database {
        Database::Sqlite(path) => Arc::new(Sqlite::open(path).await?),
        Database::Postgres(url) => Arc::new(Postgres::open(url).await?),
    })
}
