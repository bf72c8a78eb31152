//! A door before a receiver: connections wait in front of it until they are let
//! through.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
};

pub struct Gate {
    pub address: SocketAddr,
    permits: Arc<Semaphore>,
    arrived: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gate {
    /// A closed one.
    pub async fn before(target: SocketAddr) -> Self {
        Self::at("127.0.0.1:0", target).await
    }

    pub async fn at(address: &str, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (permits, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (gate, count) = (permits.clone(), arrived.clone());
        let task = tokio::spawn(async move {
            let mut tunnels = JoinSet::new();
            loop {
                let (mut outer, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let gate = gate.clone();
                tunnels.spawn(async move {
                    gate.acquire().await.unwrap().forget();
                    let mut inner = TcpStream::connect(target).await.unwrap();
                    // Either side may hang up.
                    let _ = copy_bidirectional(&mut outer, &mut inner).await;
                });
            }
        });
        Self {
            address,
            permits,
            arrived,
            task,
        }
    }

    /// Connections that came so far.
    pub fn arrived(&self) -> usize {
        self.arrived.load(Ordering::SeqCst)
    }

    pub async fn wait(&self, count: usize) {
        super::wait::until(&format!("{count} connections"), async || {
            (self.arrived() >= count).then_some(())
        })
        .await;
    }

    /// Lets so many connections through.
    pub fn let_through(&self, count: usize) {
        self.permits.add_permits(count);
    }
}
