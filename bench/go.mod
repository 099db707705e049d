module github.com/caddy-alive/caddy-alive/bench

go 1.26.0
