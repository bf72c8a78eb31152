//! Changing a row that other calls may change at the same time.

use tonic::async_trait;

use crate::{
    caller::Caller,
    domain::id::{Micros, wall_clock},
    error::Result,
    pipeline::publish::unavailable,
    store::{self, StoreError},
};

/// How often a row that another call changed at the same time is read again.
const TRIES: usize = 5;

/// A service whose rows calls change.
#[async_trait]
pub(super) trait Changes: Sync {
    /// What names a row.
    type Id: Copy + Send + Sync;
    /// A row.
    type Row: Clone + PartialEq + Send + Sync + 'static;

    /// Reads a row that the caller may see.
    async fn load(&self, caller: &Caller, id: Self::Id) -> Result<Self::Row>;

    /// Writes a row that was read with `updated_at`.
    async fn write(&self, row: &Self::Row, updated_at: Micros) -> store::Result<()>;

    /// When a row was changed.
    fn updated_at(row: &mut Self::Row) -> &mut Micros;

    /// Brings this node to what was written.
    async fn written(&self);

    /// Changes a row. Whoever changed it at the same time was first: the change is
    /// made to what they left. What is so already is not written. Answers the row
    /// as it was and as it is.
    async fn change(
        &self,
        caller: &Caller,
        id: Self::Id,
        mut change: impl for<'r> FnMut(&'r mut Self::Row, Micros) -> Result<()> + Send,
    ) -> Result<(Self::Row, Self::Row)> {
        for _ in 0..TRIES {
            let mut old = self.load(caller, id).await?;
            let now = wall_clock();
            let mut new = old.clone();
            change(&mut new, now)?;
            if new == old {
                return Ok((old, new));
            }
            let before = *Self::updated_at(&mut old);
            *Self::updated_at(&mut new) = now.max(before + 1);
            match self.write(&new, before).await {
                Ok(()) => {
                    self.written().await;
                    return Ok((old, new));
                }
                Err(StoreError::Conflict) => {}
                Err(e) => return Err(unavailable(e)),
            }
        }
        Err(unavailable(StoreError::Conflict))
    }
}
