// Command defaultprofile prints containerd's own default seccomp profile, as a pod with RuntimeDefault and no added capability gets it.
//
// Architectures are left out on purpose, so that the profile serves every architecture: without any, a runtime filters for the machine's
// own, and a call in another one's way (32-bit, x32) gets libseccomp's action for a bad architecture, which ends its thread by SIGSYS.
package main

import (
	"context"
	"encoding/json"
	"log"
	"os"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
)

func main() {
	ctx := namespaces.WithNamespace(context.Background(), "k8s.io")
	spec, err := oci.GenerateSpec(ctx, nil, &containers.Container{ID: "any"})
	if err != nil {
		log.Fatal(err)
	}
	profile := seccomp.DefaultProfile(spec)
	profile.Architectures = nil
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(profile); err != nil {
		log.Fatal(err)
	}
}
