vcl 4.1;

backend default {
    .host = "127.0.0.1";
    .port = "8000";
    .connect_timeout = 3s;
    .first_byte_timeout = 30s;
}

acl purgers {
    "127.0.0.1";
}

sub vcl_recv {
    if (req.http.Host == "example.org") {
        return (synth(301, "https://www.example.org" + req.url));
    }
    if (req.method == "PURGE") {
        if (client.ip !~ purgers) {
            return (synth(403));
        }
        return (purge);
    }
    if (req.url == "/robots.txt") {
        return (synth(200, "robots"));
    }
    if (req.url ~ "^/private/") {
        return (synth(403));
    }
    if (req.url ~ "^/api/") {
        set req.url = regsub(req.url, "^/api", "");
        return (pass);
    }
    if (req.http.Cookie ~ "(^|; )session=") {
        return (pass);
    }
    unset req.http.Cookie;
    # Parameters of campaigns are no part of the key.
    set req.url = regsuball(req.url, "(utm_[a-z]+|fbclid)=[^&]*&?", "");
    set req.url = regsub(req.url, "(\?|&)$", "");
    if (req.url ~ "^/assets/") {
        set req.url = regsub(req.url, "\?.*$", "");
    }
}

sub vcl_backend_response {
    set beresp.grace = 1d;
    if (bereq.url ~ "^/assets/") {
        set beresp.ttl = 365d;
    }
    if (beresp.status == 404) {
        set beresp.ttl = 10s;
    }
}

sub vcl_deliver {
    unset resp.http.X-Powered-By;
    set resp.http.X-Frame-Options = "DENY";
}

sub vcl_synth {
    set resp.http.X-Frame-Options = "DENY";
    if (resp.status == 301) {
        set resp.http.Location = resp.reason;
        unset resp.http.X-Frame-Options;
        synthetic("");
        return (deliver);
    }
    if (resp.reason == "robots") {
        set resp.http.Content-Type = "text/plain";
        synthetic("User-agent: *" + {"
"} + "Disallow:" + {"
"});
        return (deliver);
    }
}
