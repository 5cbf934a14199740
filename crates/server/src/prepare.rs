//! Work that takes long and waits for nothing (parsing, rendering, encoding, compiling grammars) goes aside, so that it
//! holds up no connection; so much at once as there are processors.

use crate::{error::ApiError, state::App};

impl App {
    /// Runs `work` on a thread for such work, when one is free.
    ///
    /// # Errors
    /// 500 where the work panics.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = self.preparing.clone().acquire_owned().await.map_err(|_| ApiError::stopping())?;
        let work = move || {
            let result = work();
            drop(permit);
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "preparing a request failed");
            ApiError::internal("The request could not be prepared.")
        })
    }
}
