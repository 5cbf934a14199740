//! A server from its address to its end.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use engine::Service;
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::{error::ServerError, listen, options::ServerOptions, options::Tls, state::App};

/// Times that make sense: those beyond a year cannot be added to every clock.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// What connections get at least to write their last words after the engine has stopped.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A server that listens. It answers when it is run.
pub struct Server {
    app: App,
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
}

/// A way to a server while it runs. Cheap to clone.
#[derive(Clone)]
pub struct Handle(App);

impl Server {
    /// Checks the options and listens. Connections wait until the server is run.
    ///
    /// # Errors
    /// Where an option makes no sense, the address cannot be had, it can be reached from other machines and no key is
    /// asked for, or the certificate cannot be used.
    pub fn bind(options: ServerOptions) -> Result<Server, ServerError> {
        check(&options)?;
        let tls = options.tls.as_ref().map(tls).transpose()?;
        let (listener, address) = listen_on(&options)?;
        let app = App::new(options, address.ip().is_loopback())?;
        Ok(Server { app, listener, address, tls })
    }

    /// The address that it listens on: the port is the one that was taken where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// A way to it while it runs.
    pub fn handle(&self) -> Handle {
        Handle(self.app.clone())
    }

    /// Serves this model from now on.
    pub fn ready(&self, service: Service) {
        self.app.ready(service);
    }

    /// Answers until `shutdown` is done or [`Handle::stop`] is called. Then it takes no more connections, lets what is
    /// running go on for the grace, ends the rest, and stops the engine.
    ///
    /// # Errors
    /// Where the listener cannot be used.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        let app = self.app;
        self.listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let connections = listen::accept(&app, listener, self.tls, shutdown).await;
        tracing::info!(grace_s = app.options.timeouts.grace.as_secs_f64(), "stopping");
        let grace = app.options.timeouts.grace;
        let end = tokio::time::Instant::now() + grace;
        let finished = tokio::spawn(connections.finish());
        let engine = tokio::task::spawn_blocking(move || {
            if let Some(model) = app.loaded() {
                model.service.stop(grace);
            }
        });
        if engine.await.is_err() {
            tracing::error!("stopping the engine failed");
        }
        // Nothing is made any more: what is left has only to be written.
        let end = end.max(tokio::time::Instant::now() + LAST_WORDS);
        if tokio::time::timeout_at(end, finished).await.is_err() {
            tracing::warn!("connections are cut off");
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// [`Server::run`] on threads of its own; returns when it has stopped.
    ///
    /// # Errors
    /// As [`Server::run`], and where the system gives no threads.
    pub fn run_blocking(self, shutdown: impl Future<Output = ()>) -> Result<(), ServerError> {
        // Connections cost little beside what the engine does: two threads leave it the processors.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).thread_name("server").enable_all().build()?;
        let result = runtime.block_on(self.run(shutdown));
        runtime.shutdown_timeout(Duration::from_secs(1));
        result
    }
}

impl Handle {
    /// The model is being loaded, so far.
    pub fn loading(&self, done_bytes: u64, all_bytes: u64) {
        self.0.loading(done_bytes, all_bytes);
    }

    /// Serves this model from now on.
    pub fn ready(&self, service: Service) {
        self.0.ready(service);
    }

    /// Ends the server as if its `shutdown` were done. Returns at once.
    pub fn stop(&self) {
        self.0.stop.send_replace(true);
    }

    /// What `/metrics` shows.
    pub fn metrics(&self) -> String {
        self.0.metrics.render(self.0.loaded().map(|model| model.service.stats()).as_ref())
    }
}

fn check(options: &ServerOptions) -> Result<(), ServerError> {
    let limits = &options.limits;
    for (name, value) in [
        ("the limit on body bytes", limits.body_bytes),
        ("the limit on bytes of all bodies", limits.bodies_bytes),
        ("the limit on JSON values", limits.json_values),
        ("the limit on connections", limits.connections),
        ("the limit on prompt tokens", limits.prompt_tokens.unwrap_or(1)),
        ("the limit on answer tokens", limits.answer_tokens.unwrap_or(1)),
        ("the limit on choices", limits.choices),
        ("the limit on prompts", limits.prompts),
        ("the limit on unread bytes", limits.unread_bytes),
    ] {
        if value == 0 {
            return Err(ServerError::ZeroLimit { name });
        }
    }
    let timeouts = &options.timeouts;
    for (name, value, least) in [
        ("the timeout of heads", timeouts.header, SHORTEST),
        ("the timeout of bodies", timeouts.body, SHORTEST),
        ("the timeout of writes", timeouts.write, SHORTEST),
        ("the timeout of requests", timeouts.request, SHORTEST),
        ("the time between comments", timeouts.keep_alive, SHORTEST),
        ("the grace", timeouts.grace, Duration::ZERO),
    ] {
        if !(least..=LONGEST).contains(&value) {
            return Err(ServerError::Timeout { name, value });
        }
    }
    Ok(())
}

fn listen_on(options: &ServerOptions) -> Result<(TcpListener, SocketAddr), ServerError> {
    let host = options.host.trim_start_matches('[').trim_end_matches(']');
    let no_host = |source| ServerError::Host { host: options.host.clone(), source };
    let mut addresses: Vec<SocketAddr> = (host, options.port).to_socket_addrs().map_err(no_host)?.collect();
    // A name that means both, as localhost: clients that know one alone know this one.
    addresses.sort_by_key(SocketAddr::is_ipv6);
    if let Some(&address) = addresses.iter().find(|address| !address.ip().is_loopback())
        && options.api_keys.is_empty()
        && !options.no_auth
    {
        return Err(ServerError::KeyRequired { address });
    }
    let mut failed = no_host(std::io::Error::from(std::io::ErrorKind::NotFound));
    for address in addresses {
        match TcpListener::bind(address).and_then(|listener| Ok((listener.local_addr()?, listener))) {
            Ok((address, listener)) => return Ok((listener, address)),
            Err(source) => failed = ServerError::Bind { address, source },
        }
    }
    Err(failed)
}

fn tls(files: &Tls) -> Result<Arc<ServerConfig>, ServerError> {
    let bad = |path: &std::path::Path, reason: String| ServerError::Certificate { path: path.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(&files.certificates)
        .and_then(|chain| chain.collect::<Result<Vec<_>, _>>())
        .map_err(|error| bad(&files.certificates, error.to_string()))?;
    if chain.is_empty() {
        return Err(bad(&files.certificates, "no certificate in it".to_owned()));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| bad(&files.key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> ServerOptions {
        ServerOptions { port: 0, ..ServerOptions::default() }
    }

    #[test]
    fn off_loopback_a_key_is_needed_or_a_word() {
        let open = ServerOptions { host: "0.0.0.0".to_owned(), ..local() };
        assert!(matches!(Server::bind(open.clone()), Err(ServerError::KeyRequired { .. })));
        Server::bind(ServerOptions { api_keys: vec!["k".to_owned()], ..open.clone() }).unwrap();
        Server::bind(ServerOptions { no_auth: true, ..open }).unwrap();
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        let taken = Server::bind(local()).unwrap();
        let port = taken.address().port();
        let refused = |options| Server::bind(options).err().unwrap();
        assert!(matches!(refused(ServerOptions { port, ..local() }), ServerError::Bind { .. }));
        let nowhere = ServerOptions { host: "no such host".to_owned(), ..local() };
        assert!(matches!(refused(nowhere), ServerError::Host { .. }));
        let mut shut = local();
        shut.limits.connections = 0;
        assert!(refused(shut).to_string().contains("connections"));
        for seconds in [0, u64::MAX] {
            let mut endless = local();
            endless.timeouts.request = Duration::from_secs(seconds);
            assert!(refused(endless).to_string().contains("timeout of requests"));
        }
        let files = Tls { certificates: "/no/such.pem".into(), key: "/no/such.key".into() };
        let error = refused(ServerOptions { tls: Some(files), ..local() });
        assert!(error.to_string().contains("/no/such.pem"), "{error}");
    }

    #[test]
    fn ipv6_hosts_may_have_brackets() {
        // Machines without IPv6 say so; the name must not be what fails.
        if let Err(error) = Server::bind(ServerOptions { host: "[::1]".to_owned(), ..local() }) {
            assert!(matches!(error, ServerError::Bind { .. }), "{error}");
        }
    }
}
