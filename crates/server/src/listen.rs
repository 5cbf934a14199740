//! Connections: accepted up to a limit, served with timeouts, finished when the server stops.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;

use crate::{options::Timeouts, routes, state::App};

/// A head beyond this many bytes is refused (431), and one that comes at once beyond some 100 KiB.
const MOST_HEAD_BYTES: usize = 64 << 10;

/// What is waited for after the system had no socket left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// The connections that are open when no more are accepted.
pub(crate) struct Connections(GracefulShutdown);

impl Connections {
    /// Lets each finish the request it is at, and waits for all.
    pub(crate) async fn finish(self) {
        self.0.shutdown().await;
    }
}

/// Accepts connections until `shutdown` is done or the server is told to stop.
pub(crate) async fn accept(
    app: &App,
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    shutdown: impl Future<Output = ()>,
) -> Connections {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(app.options.limits.connections));
    let tls = tls.map(TlsAcceptor::from);
    let router = routes::router(app);
    let mut shutdown = pin!(shutdown);
    let mut stop = app.stop.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = next(&listener, &slots) => accepted,
            () = &mut shutdown => break,
            // The sender lives as long as the application.
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let Some((stream, slot)) = accepted else { continue };
        // Tokens are small and must not wait for each other.
        let _ = stream.set_nodelay(true);
        serve(app, router.clone(), stream, slot, tls.clone(), &graceful);
    }
    app.stop.send_replace(true);
    Connections(graceful)
}

/// A connection, when there is a slot for it.
async fn next(listener: &TcpListener, slots: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, slot)),
        Err(error) => {
            // Either this one connection broke, or the system has no socket left; both pass.
            tracing::warn!(%error, "a connection was not accepted");
            tokio::time::sleep(EXHAUSTED_PAUSE).await;
            None
        }
    }
}

fn serve(
    app: &App,
    router: Router,
    stream: TcpStream,
    slot: OwnedSemaphorePermit,
    tls: Option<TlsAcceptor>,
    graceful: &GracefulShutdown,
) {
    let timeouts = app.options.timeouts;
    let app = app.clone();
    let watcher = graceful.watcher();
    tokio::spawn(async move {
        app.metrics.connected();
        let end = Ended(app);
        let served = match tls {
            None => watcher.watch(connection(stream, router, timeouts)).await,
            Some(tls) => match tokio::time::timeout(timeouts.header, tls.accept(stream)).await {
                Ok(Ok(stream)) => watcher.watch(connection(stream, router, timeouts)).await,
                Ok(Err(error)) => {
                    tracing::debug!(%error, "no TLS");
                    Ok(())
                }
                Err(_) => Ok(()),
            },
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection broke");
        }
        drop((end, slot));
    });
}

/// Counts a connection out, also where its task panics.
struct Ended(App);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.metrics.disconnected();
    }
}

type Connection<S> = http1::Connection<TokioIo<Pin<Box<TimeoutStream<S>>>>, TowerToHyperService<Router>>;

fn connection<S>(stream: S, router: Router, timeouts: Timeouts) -> Connection<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // A client that takes nothing holds its answer no longer than this.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(timeouts.write));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(timeouts.header)
        .max_buf_size(MOST_HEAD_BYTES)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router))
}
