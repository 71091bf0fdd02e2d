//! TLS 1.3 and nothing older; tickets under keys that processes may share, so that any of them resumes.
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest;
use rustls::crypto::aws_lc_rs as provider;
use rustls::server::{ProducesTickets, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::sync::{Arc, RwLock};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

const NAME_LEN: usize = 16;
pub const TICKET_KEY_LEN: usize = NAME_LEN + 32;
const TICKET_LIFETIME_S: u32 = 12 * 3600;

struct TicketKey {
    name: [u8; NAME_LEN],
    key: LessSafeKey,
}

/// The first key encrypts, all decrypt.
struct SharedTickets {
    keys: RwLock<Vec<TicketKey>>,
    /// What a ticket is worth depends on the roots that its client was checked with: a listener with
    /// others takes none of it.
    roots: [u8; 32],
}

impl std::fmt::Debug for SharedTickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedTickets")
    }
}

impl SharedTickets {
    fn new(keys: &[Vec<u8>], client_roots: &[u8]) -> Result<SharedTickets, Error> {
        let roots = digest::digest(&digest::SHA256, client_roots).as_ref().try_into()?;
        Ok(SharedTickets { keys: RwLock::new(ticket_keys(keys)?), roots })
    }

    fn bound(&self, name: &[u8]) -> Aad<Vec<u8>> {
        Aad::from([name, &self.roots].concat())
    }
}

fn ticket_keys(keys: &[Vec<u8>]) -> Result<Vec<TicketKey>, Error> {
    keys.iter()
        .map(|bytes| {
            let (name, key) = bytes
                .split_at_checked(NAME_LEN)
                .filter(|_| bytes.len() == TICKET_KEY_LEN)
                .ok_or(format!("a ticket key has {TICKET_KEY_LEN} bytes"))?;
            let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| "bad ticket key")?;
            Ok(TicketKey { name: name.try_into()?, key: LessSafeKey::new(key) })
        })
        .collect()
}

impl ProducesTickets for SharedTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        TICKET_LIFETIME_S
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.read().unwrap();
        let TicketKey { name, key } = keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        let mut body = plain.to_vec();
        key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            self.bound(name),
            &mut body,
        )
        .ok()?;
        Some([&name[..], &nonce, &body].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_LEN)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.keys.read().unwrap();
        let TicketKey { key, .. } = keys.iter().find(|key| key.name == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = body.to_vec();
        let len = key.open_in_place(nonce, self.bound(name), &mut body).ok()?.len();
        body.truncate(len);
        Some(body)
    }
}

/// What stays the same when the certificate is renewed.
pub struct Listener {
    client_roots: Vec<u8>,
    require_client: bool,
    tickets: Arc<dyn ProducesTickets>,
    shared: Option<Arc<SharedTickets>>,
}

impl Listener {
    /// Without `ticket_keys` it makes and changes keys of its own.
    pub fn new(
        client_roots: Vec<u8>,
        require_client: bool,
        ticket_keys: &[Vec<u8>],
    ) -> Result<Listener, Error> {
        if ticket_keys.is_empty() {
            let tickets = provider::Ticketer::new()?;
            return Ok(Listener { client_roots, require_client, tickets, shared: None });
        }
        let shared = Arc::new(SharedTickets::new(ticket_keys, &client_roots)?);
        let tickets = shared.clone();
        Ok(Listener { client_roots, require_client, tickets, shared: Some(shared) })
    }

    /// Other keys from the next handshake on. One that began with its own goes on with them.
    pub fn rotate(&self, keys: &[Vec<u8>]) -> Result<(), Error> {
        let Some(shared) = &self.shared else { return Err("its ticket keys are its own".into()) };
        let keys = ticket_keys(keys)?;
        if keys.is_empty() {
            return Err("a ticket key is needed".into());
        }
        *shared.keys.write().unwrap() = keys;
        Ok(())
    }

    pub fn config(&self, chain_pem: &[u8], key_pem: &[u8]) -> Result<Arc<ServerConfig>, Error> {
        let provider = Arc::new(provider::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?;
        let builder = if self.client_roots.is_empty() {
            if self.require_client {
                return Err("client certificates are required, and there are no roots".into());
            }
            builder.with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(&self.client_roots) {
                roots.add(certificate?)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            let verifier =
                if self.require_client { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build()?)
        };
        let chain = CertificateDer::pem_slice_iter(chain_pem).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key_pem)?;
        let mut config = builder.with_single_cert(chain, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.send_tls13_tickets = 1;
        config.ticketer = self.tickets.clone();
        Ok(Arc::new(config))
    }
}
