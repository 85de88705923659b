//! DNS cookies (RFC 7873) in the form that servers of different makers share (RFC 9018): a client that
//! returns its cookie has shown that it can receive at its address.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher24;

use super::query::CookieOption;

/// Makes and verifies cookies.
#[derive(Clone)]
pub(super) struct Cookies {
    secret: [u8; 16],
}

/// The result of a query's cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CheckedCookie {
    /// The client's cookie and the server's, for the response.
    pub response: [u8; 24],
    /// Whether the client has shown that it receives at its address.
    pub is_verified: bool,
}

impl Cookies {
    /// Servers behind one address need the same secret.
    pub(super) fn new(secret: [u8; 16]) -> Self {
        Self { secret }
    }

    /// Verifies the server's cookie, if there is one, and makes the one of the response. `now`: seconds since
    /// 1970, modulo 2^32.
    pub(super) fn check(
        &self,
        cookie: CookieOption<'_>,
        client: IpAddr,
        now: u32,
    ) -> CheckedCookie {
        let made = self.age_if_valid(cookie, client, now);
        let mut response = [0; 24];
        response[..8].copy_from_slice(&cookie.client);
        match made {
            // A cookie lasts an hour, and is renewed after half of it (RFC 9018 §4.3).
            Some(age) if age < RENEWED_AFTER => response[8..].copy_from_slice(cookie.server),
            _ => response[8..].copy_from_slice(&self.make(&cookie.client, client, now)),
        }
        CheckedCookie { response, is_verified: made.is_some() }
    }

    fn age_if_valid(&self, cookie: CookieOption<'_>, client: IpAddr, now: u32) -> Option<i32> {
        let server: &[u8; 16] = cookie.server.try_into().ok()?;
        let made = u32::from_be_bytes([server[4], server[5], server[6], server[7]]);
        // Serial number arithmetic (RFC 1982): the clock may wrap.
        let age = now.wrapping_sub(made) as i32;
        let expected = self.make(&cookie.client, client, made);
        let is_valid = expected == *server && (-FUTURE_MAX..=AGE_MAX).contains(&age);
        is_valid.then_some(age)
    }

    fn make(&self, client_cookie: &[u8; 8], client: IpAddr, time: u32) -> [u8; 16] {
        let mut cookie = [0; 16];
        cookie[0] = VERSION;
        cookie[4..8].copy_from_slice(&time.to_be_bytes());
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(client_cookie);
        hasher.write(&cookie[..8]);
        match client {
            IpAddr::V4(address) => hasher.write(&address.octets()),
            IpAddr::V6(address) => hasher.write(&address.octets()),
        }
        cookie[8..].copy_from_slice(&hasher.finish().to_le_bytes());
        cookie
    }
}

const VERSION: u8 = 1;
/// Seconds (RFC 9018 §4.3).
const AGE_MAX: i32 = 3600;
const FUTURE_MAX: i32 = 300;
const RENEWED_AFTER: i32 = 1800;

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: [u8; 8] = [0x24, 0x64, 0xc4, 0xab, 0xcf, 0x10, 0xc9, 0x57];
    const SERVER: [u8; 16] = [
        0x01, 0x00, 0x00, 0x00, 0x5c, 0xf7, 0x9f, 0x11, 0x1f, 0x81, 0x30, 0xc3, 0xee, 0xe2, 0x94,
        0x80,
    ];

    fn cookies() -> Cookies {
        Cookies::new(0xe5e9_73e5_a6b2_a43f_48e7_dc84_9e37_bfcf_u128.to_be_bytes())
    }

    fn client() -> IpAddr {
        "198.51.100.100".parse().expect("an address")
    }

    #[test]
    fn the_test_vector_of_rfc_9018_is_reproduced() {
        let option = CookieOption { client: CLIENT, server: b"" };
        let checked = cookies().check(option, client(), 1_559_731_985);
        assert_eq!(checked.response, [&CLIENT[..], &SERVER].concat()[..]);
        assert!(!checked.is_verified, "the client has not returned it yet");
    }

    #[test]
    fn a_returned_cookie_is_valid_for_an_hour_at_its_address() {
        let check = |client: IpAddr, later: i32, valid: bool| {
            let option = CookieOption { client: CLIENT, server: &SERVER };
            let checked =
                cookies().check(option, client, 1_559_731_985_u32.wrapping_add_signed(later));
            assert_eq!(checked.is_verified, valid, "{later}");
            let is_same = checked.response[8..] == SERVER;
            assert_eq!(is_same, valid && later < 1800, "{later}");
        };
        check(client(), 0, true);
        check(client(), 1799, true);
        check(client(), 1800, true);
        check(client(), 3600, true);
        check(client(), 3601, false);
        check(client(), -300, true);
        check(client(), -301, false);
        check("198.51.100.101".parse().expect("an address"), 0, false);
    }

    #[test]
    fn a_cookie_of_another_length_or_version_is_not_valid() {
        let mut other = SERVER;
        other[0] = 2;
        for server in [&other[..], &SERVER[..8], &[&SERVER[..], &[0; 8]].concat()] {
            let option = CookieOption { client: CLIENT, server };
            assert!(!cookies().check(option, client(), 1_559_731_985).is_verified);
        }
    }
}
