//! A TCP proxy that can be cut: what stands behind it is then gone, for those
//! who are connected and for those who try. And one that can go silent: nothing
//! passes any more, and nobody is told; or let questions through and lose the
//! answers, or hold these back for a while.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

use super::app::database_url;
use super::store::Db;

/// The proxy. It ends with the test's runtime.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<watch::Sender<State>>,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Open,
    Deaf,
    /// Answers come so much later.
    Slow(Duration),
    Cut,
    Silent,
}

impl State {
    fn takes_questions(self) -> bool {
        matches!(self, Self::Open | Self::Deaf | Self::Slow(_))
    }
}

/// Passes answers on, late while the proxy is slow, and not at all while it is deaf.
async fn answers(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    state: watch::Receiver<State>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        let now = *state.borrow();
        if let State::Slow(by) = now {
            tokio::time::sleep(by).await;
        }
        if now != State::Deaf {
            to.write_all(&buffer[..n]).await?;
        }
    }
}

impl Proxy {
    /// In front of a test's PostgreSQL: the proxy and the URL that goes through it.
    pub async fn before(db: &Db) -> (Self, String) {
        let mut url = url::Url::parse(&database_url(db.database())).unwrap();
        let to = format!("{}:{}", url.host_str().unwrap(), url.port().unwrap());
        let proxy = Self::to(to).await;
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(proxy.address.port())).unwrap();
        (proxy, url.into())
    }

    /// In front of any address.
    pub async fn to(to: String) -> Self {
        Self::towards(move || Some(to.clone())).await
    }

    /// In front of an address that may change, and for a while be none.
    pub async fn towards(to: impl Fn() -> Option<String> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(watch::Sender::new(State::Open));
        let now = state.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Some(to) = to() else { continue };
                let mut state = now.subscribe();
                tokio::spawn(async move {
                    let began = *state.borrow_and_update();
                    match began {
                        State::Open | State::Deaf | State::Slow(_) => {}
                        State::Cut => return,
                        State::Silent => std::future::pending().await,
                    }
                    let Ok(far) = TcpStream::connect(to).await else {
                        return;
                    };
                    let (mut asking, mut answered) = near.into_split();
                    let (mut answering, mut asked) = far.into_split();
                    let silent = tokio::select! {
                        _ = copy(&mut asking, &mut asked) => false,
                        _ = answers(&mut answering, &mut answered, state.clone()) => false,
                        changed = state.wait_for(|s| !s.takes_questions()) => {
                            changed.is_ok_and(|s| *s == State::Silent)
                        }
                    };
                    if silent {
                        // Both ends stay open.
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { address, state }
    }

    /// Ends every connection, and takes no other one.
    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Lets nothing through any more, in either direction; connections stay open,
    /// and others are taken. Those of before stay silent for good.
    pub fn silence(&self) {
        self.state.send_replace(State::Silent);
    }

    /// Lets questions through and loses their answers.
    pub fn deafen(&self) {
        self.state.send_replace(State::Deaf);
    }

    /// Holds each answer back for so long.
    pub fn slow_down(&self, by: Duration) {
        self.state.send_replace(State::Slow(by));
    }

    /// Takes connections again.
    pub fn mend(&self) {
        self.state.send_replace(State::Open);
    }
}
