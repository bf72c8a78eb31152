use async_trait::async_trait;

use super::Engine;
use crate::store::{Load, LoadStore, Result};

#[async_trait]
impl LoadStore for Engine {
    async fn load_finished(&self, load: &Load) -> Result<()> {
        self.write_finished(load).await
    }

    async fn analyze(&self) -> Result<()> {
        self.gather_statistics().await
    }
}
