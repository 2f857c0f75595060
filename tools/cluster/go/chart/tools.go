//go:build tools

// Package tools names the commands that check the chart and write its README, so that go.sum covers them.
package tools

import (
	_ "github.com/norwoodj/helm-docs/cmd/helm-docs"
	_ "github.com/yannh/kubeconform/cmd/kubeconform"
)
