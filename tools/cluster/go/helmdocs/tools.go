//go:build tools

// Package tools names the command that writes the chart's README, so that go.sum covers it.
package tools

import _ "github.com/norwoodj/helm-docs/cmd/helm-docs"
