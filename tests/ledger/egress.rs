//! Each sender's own way to receivers, by which these know who has sent an attempt:
//! a proxy (CONNECT) that comes from an address of its own.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};

/// A process that sends attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Sender {
    Node(u8),
    Worker(u8),
}

impl Sender {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Node(n) => format!("node-{n}"),
            Self::Worker(n) => format!("worker-{n}"),
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        let (kind, number) = name.split_once('-')?;
        let number = number.parse().ok()?;
        match kind {
            "node" => Some(Self::Node(number)),
            "worker" => Some(Self::Worker(number)),
            _ => None,
        }
    }

    /// Who comes from there.
    pub(crate) fn at(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) if v4.octets()[..3] == [127, 1, 0] => Self::Node(v4.octets()[3]),
            IpAddr::V4(v4) if v4.octets()[..3] == [127, 2, 0] => Self::Worker(v4.octets()[3]),
            _ => panic!("a sender that is not known: {address}"),
        }
    }

    fn address(self) -> Ipv4Addr {
        match self {
            Self::Node(n) => Ipv4Addr::new(127, 1, 0, n),
            Self::Worker(n) => Ipv4Addr::new(127, 2, 0, n),
        }
    }
}

/// The way of one of them.
pub(crate) struct Egress {
    pub(crate) url: String,
    task: JoinHandle<()>,
}

impl Drop for Egress {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Egress {
    /// One on which whatever is sent comes so much later.
    pub(crate) async fn of(sender: Sender, late: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                // Either side may be gone.
                tokio::spawn(async move { pass(near, sender, late).await.ok() });
            }
        });
        Self { url, task }
    }
}

async fn pass(mut near: TcpStream, sender: Sender, late: Duration) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let socket = TcpSocket::new_v4()?;
    socket.bind((sender.address(), 0).into())?;
    let to = head.split(' ').nth(1).unwrap().parse().unwrap();
    let mut far = socket.connect(to).await?;
    far.set_nodelay(true)?;
    near.set_nodelay(true)?;
    near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    let (mut asking, mut answered) = near.split();
    let (mut answering, mut asked) = far.split();
    let ask = async {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = asking.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            tokio::time::sleep(late).await;
            asked.write_all(&buffer[..n]).await?;
        }
    };
    // Where one side has ended both have: a sender that gives up is not waited for.
    tokio::select! {
        done = ask => done,
        done = copy(&mut answering, &mut answered) => done.map(|_| ()),
    }
}
