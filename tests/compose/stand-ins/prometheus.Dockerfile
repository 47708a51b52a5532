FROM debian
RUN apt-get update -q && apt-get install -qy --no-install-recommends prometheus wget \
 && install -d -o nobody -g nogroup /prometheus
VOLUME /prometheus
WORKDIR /prometheus
USER nobody
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
