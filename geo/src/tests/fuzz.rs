//! Fuzz target: mmdb databases.

use std::borrow::Cow;
use std::net::IpAddr;

use maxminddb::PathElement::Key;

use crate::database::{Database, Schema};
use crate::{Country, Source};

/// A database that was found to be whole answers for every address, with what a reader that knows
/// nothing of the schemas finds there.
pub fn mmdb(data: &[u8]) {
    let Ok(database) = Database::checked(Cow::Owned(data.to_vec()), &Source::BuiltIn) else {
        return;
    };
    let Ok(reader) = maxminddb::Reader::from_source(data) else { panic!("the crate reads it") };
    for address in
        ["0.0.0.0", "1.2.3.4", "192.0.2.1", "255.255.255.255", "::", "2001:db8::1", "ffff::"]
    {
        let address: IpAddr = address.parse().expect("an address");
        let record = database.record(address);
        database.offset(address);
        if address.is_ipv6() && reader.metadata().ip_version == 4 {
            assert_eq!(record.country, None);
            continue;
        }
        let found = reader.lookup(address).expect("the tree is whole");
        let code = match database.schema {
            Schema::Flat => found.decode_path::<&str>(&[Key("country_code")]),
            Schema::GeoIp2 => found.decode_path::<&str>(&[Key("country"), Key("iso_code")]),
        };
        let code = code.ok().flatten().and_then(|code| code.as_bytes().try_into().ok());
        assert_eq!(record.country, code.and_then(Country::from_code), "{address}");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    #[test]
    fn what_fuzzing_has_kept_still_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/mmdb");
        let inputs: Vec<_> = fs::read_dir(corpus).expect("the corpus can be read").collect();
        assert!((3..=300).contains(&inputs.len()), "{} inputs", inputs.len());
        for input in inputs {
            let input = input.expect("an entry").path();
            // Shown when it fails.
            println!("{}", input.display());
            super::mmdb(&fs::read(input).expect("an input"));
        }
    }
}
