//! The connection of the commands that call a server.

use std::process::ExitCode;

use clap::Args;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, ClientTlsConfig},
};

use super::failed;
use crate::error::{self, Error};

/// Which server to call, and with which key.
#[derive(Args, Clone)]
pub(super) struct Server {
    /// The server's address
    #[arg(
        long,
        env = "ONERING_URL",
        default_value = "http://127.0.0.1:8000",
        global = true
    )]
    url: String,
    /// An admin key
    #[arg(long, env = "ONERING_ADMIN_KEY", hide_env_values = true, global = true)]
    admin_key: Option<String>,
}

/// A call that did not succeed.
pub(super) enum CallError {
    /// The command was used wrongly.
    Wrong(String),
    /// The server can't be reached.
    Unreached(String),
    /// The server refused.
    Refused(Box<Error>),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        use std::error::Error as _;
        // A status of tonic's own has the transport's error as its source.
        if status.code() == tonic::Code::Unavailable && status.source().is_some() {
            Self::Unreached(status.message().to_owned())
        } else {
            Self::Refused(Box::new(Error::from(&status)))
        }
    }
}

impl CallError {
    /// Says what went wrong; the command's exit code.
    pub(super) fn tell(&self) -> ExitCode {
        match self {
            Self::Wrong(e) => failed(2, e),
            Self::Unreached(e) => failed(3, e),
            Self::Refused(e) => {
                let hint = error::meaning(e.reason).hint;
                failed(1, &format_args!("{e}\n  {hint}"))
            }
        }
    }
}

/// An open connection.
pub(super) struct Connection {
    pub(super) channel: Channel,
    key: MetadataValue<Ascii>,
}

impl Connection {
    /// A request with the admin key.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", self.key.clone());
        request
    }

    /// Connects to a server with a key.
    pub(super) async fn open(url: &str, key: &str) -> Result<Self, CallError> {
        let wrong = |e: &dyn std::fmt::Display| CallError::Wrong(format!("{url}: {e}"));
        let mut endpoint = Channel::from_shared(url.to_owned()).map_err(|e| wrong(&e))?;
        if url.starts_with("https://") {
            endpoint = endpoint
                .tls_config(ClientTlsConfig::new().with_webpki_roots())
                .map_err(|e| wrong(&e))?;
        }
        let channel = endpoint.connect().await.map_err(|_| {
            CallError::Unreached(format!(
                "{url} can't be reached; is `onering serve` running there?"
            ))
        })?;
        let key = format!("Bearer {key}")
            .parse()
            .map_err(|_| CallError::Wrong("the admin key has characters that no key has".into()))?;
        Ok(Self { channel, key })
    }
}

impl Server {
    /// Connects.
    pub(super) async fn connect(&self) -> Result<Connection, CallError> {
        let key = self.admin_key.as_deref().ok_or_else(|| {
            CallError::Wrong("no admin key: set ONERING_ADMIN_KEY or --admin-key".into())
        })?;
        Connection::open(&self.url, key).await
    }
}
