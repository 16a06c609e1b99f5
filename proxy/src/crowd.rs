//! How many connections a listener has, in all and of each client. Refusing one costs nothing but its acceptance.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

/// The connections of one listener, over all workers. It holds one entry for each client that has a connection now, no more.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    all: AtomicUsize,
    clients: DashMap<IpAddr, u32>,
}

/// Why there is no room for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Full {
    /// `limits.connections`.
    Listener,
    /// `limits.connections_per_client`.
    Client,
}

/// The place of one connection, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    crowd: Arc<Crowd>,
    client: Option<IpAddr>,
}

impl Crowd {
    /// A place for a connection. `each` limits the connections of one client; `None` counts nobody's.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn admit(self: &Arc<Self>, all: usize, each: Option<(u32, SocketAddr)>) -> Result<Place, Full> {
        let mut place = Place { crowd: Arc::clone(self), client: None };
        if self.all.fetch_add(1, Relaxed) >= all {
            return Err(Full::Listener); // Dropped, the place is given back.
        }
        if each.is_some_and(|(each, client)| !place.is_of(client, each)) {
            return Err(Full::Client);
        }
        Ok(place)
    }
}

impl Place {
    /// Counts it as one of this client's, who may have `each`; false = it has as many already.
    pub(crate) fn is_of(&mut self, client: SocketAddr, each: u32) -> bool {
        let client = one_client(client.ip());
        match self.crowd.clients.entry(client) {
            Entry::Occupied(entry) if *entry.get() >= each => return false,
            Entry::Occupied(mut entry) => *entry.get_mut() += 1,
            Entry::Vacant(entry) => drop(entry.insert(1)),
        }
        self.client = Some(client);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.crowd.all.fetch_sub(1, Relaxed);
        if let Some(client) = self.client
            && let Entry::Occupied(mut entry) = self.crowd.clients.entry(client)
        {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// What counts as one client: an IPv4 address, or the first half of an IPv6 address, which is what one customer is given at least (RFC 6177).
fn one_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_limited_and_given_back() {
        let crowd = Arc::new(Crowd::default());
        let admit = |peer: &str| crowd.admit(4, Some((2, peer.parse().unwrap())));
        let first = admit("192.0.2.1:1").unwrap();
        let second = admit("[::ffff:192.0.2.1]:2").unwrap();
        assert_eq!(admit("192.0.2.1:3").err(), Some(Full::Client), "the same client, however it is written");
        let third = admit("[2001:db8::1]:1").unwrap();
        let fourth = admit("[2001:db8::2]:1").unwrap();
        assert_eq!(admit("192.0.2.9:1").err(), Some(Full::Listener), "full");
        drop(second);
        assert_eq!(admit("[2001:db8::3]:1").err(), Some(Full::Client), "one network is one client");
        drop((admit("192.0.2.1:4").unwrap(), first, third, fourth));
        assert_eq!((crowd.all.load(Relaxed), crowd.clients.len()), (0, 0), "nothing is kept of who has gone");
        assert!(crowd.admit(1, None).is_ok());
    }
}
