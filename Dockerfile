# One image for both programs. The manifests say which one runs. `make image` builds the same image without a container
# engine.
FROM --platform=$BUILDPLATFORM golang:1.26.8 AS build
ARG TARGETOS=linux TARGETARCH
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY api api
COPY internal internal
COPY controller controller
COPY speaker speaker
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH go build -trimpath -ldflags="-s -w" -o /out/ ./controller ./speaker
RUN mkdir /out/etc && printf 'root:x:0:0:root:/:/none\nnobody:x:65534:65534:nobody:/:/none\n' > /out/etc/passwd

# No shell, no libraries, no package manager. The two static programs trust the API server by the CA that Kubernetes
# mounts.
FROM scratch
ARG VERSION=v0.2.0 REVISION
LABEL org.opencontainers.image.title="gantry" \
      org.opencontainers.image.description="Gantry's controller and speaker" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/gantry-lb/gantry" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /out/ /
USER 65534:65534
ENTRYPOINT ["/controller"]
