//go:build tools

// Package tools names runc, which needs cgo and build tags and therefore a module of its own, so that go.sum covers it.
package tools

import _ "github.com/opencontainers/runc"
