# One image for both binaries, without a shell; the manifests say which one runs.
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY api api
COPY internal internal
COPY controller controller
COPY speaker speaker
RUN CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /out/ ./controller ./speaker

FROM scratch
COPY --from=build /out/controller /out/speaker /
USER 65534:65534
ENTRYPOINT ["/controller"]
