"""The origin of the documentation's pages: python3 origin.py PORT.

    /assets/…    may be cached for an hour        /account…   private
    /news…       a minute, then stale for an hour /missing…   404
    /tagged/T    an hour, with the tag T          others      ten minutes
    /sitemap.xml a sitemap of three pages

The content names the request that the origin got.
"""

import mimetypes
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Origin(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        # The rest of a request would be taken for the next one.
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.split("?")[0]
        host = self.headers.get("Host")
        content = f"{self.command} {self.path} of {host}\n".encode()
        if path == "/sitemap.xml":
            urls = "".join(f"<url><loc>http://{host}/{page}</loc></url>" for page in ("", "news", "assets/app.css"))
            content = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{urls}</urlset>'.encode()
        is_unchanged = self.headers.get("If-None-Match") == '"1"'
        if is_unchanged:
            content = b""
        self.send_response(404 if path.startswith("/missing") else 304 if is_unchanged else 200)
        if path.startswith("/account"):
            self.send_header("Cache-Control", "private")
        elif path.startswith("/news"):
            self.send_header("Cache-Control", "max-age=60, stale-while-revalidate=3600, stale-if-error=3600")
        elif path.startswith(("/assets", "/tagged")):
            self.send_header("Cache-Control", "max-age=3600")
        else:
            self.send_header("Cache-Control", "max-age=600")
        if path.startswith("/cookie"):
            self.send_header("Set-Cookie", "visitor=1")
        if path.startswith("/tagged/"):
            self.send_header("Surrogate-Key", path.removeprefix("/tagged/"))
        self.send_header("ETag", '"1"')
        self.send_header("Content-Type", mimetypes.guess_type(path)[0] or "text/plain")
        if not is_unchanged:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Origin).serve_forever()
