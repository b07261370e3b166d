package headrace;

import java.math.BigDecimal;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Optional;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.apache.flink.table.api.DataTypes;
import org.apache.flink.table.functions.UserDefinedFunction;
import org.apache.flink.table.types.DataType;
import org.apache.flink.table.types.inference.CallContext;
import org.apache.flink.table.types.inference.StateTypeStrategy;
import org.apache.flink.table.types.inference.StaticArgument;
import org.apache.flink.types.ColumnList;
import org.apache.flink.types.Row;

/**
 * The values of a tile, anew at each of its records: the columns of `sums`, `smallest` and `largest`, where NULL counts for nothing.
 *
 * <p>Its records are on time for it: it ends later than `m - B`, the largest time of their partition less the out-of-orderness. Watermarks
 * before them are `m - B - 1` at most, so none has reached the tile's last millisecond. A tile is kept until one has come as far as a tile's
 * length behind its first record, less a millisecond, which is no earlier: so no record finds its tile gone. And tiles go at the pace at
 * which they came: at their end they would all go at once, and the job would stand still meanwhile.
 */
public final class Tiles extends Keyed {
    private static final int TILE_MS = 1, SUMS = 2, SMALLEST = 3, LARGEST = 4;

    private final long tileMs;
    private final int time;
    private final int[] columns;
    private final int sums;
    private final int smallest;

    public Tiles() {
        time = sums = smallest = 0;
        tileMs = 0;
        columns = new int[0];
    }

    private Tiles(CallContext call) {
        tileMs = number(call, TILE_MS);
        time = column(call, TIME_MS);
        columns = folded(call).mapToInt(name -> column(call, name)).toArray();
        sums = named(call, SUMS).size();
        smallest = named(call, SMALLEST).size();
    }

    @Override
    public UserDefinedFunction specialize(SpecializedContext context) {
        return new Tiles(context.getCallContext());
    }

    @Override
    List<StaticArgument> arguments() {
        return List.of(constant("tile_ms"), columns("sums"), columns("smallest"), columns("largest"));
    }

    @Override
    LinkedHashMap<String, StateTypeStrategy> state() {
        LinkedHashMap<String, StateTypeStrategy> state = new LinkedHashMap<>();
        state.put("values", kept(call -> Optional.of(given(call))));
        return state;
    }

    @Override
    DataType given(CallContext call) {
        List<DataTypes.Field> fields = DataType.getFields(records(call).dataType());
        return DataTypes.ROW(folded(call)
                .map(name -> DataTypes.FIELD(name, fields.get(column(call, name)).getDataType().nullable()))
                .collect(Collectors.toList()));
    }

    public void eval(
            Context context, Row values, Row record, Long ofMs, ColumnList summed, ColumnList least, ColumnList most) {
        boolean isNew = true;
        for (int index = 0; index < columns.length; index++) {
            Object held = values.getField(index), more = record.getField(columns[index]);
            isNew &= held == null;
            values.setField(index, held == null ? more : more == null ? held : folded(index, held, more));
        }
        if (isNew) {
            context.timeContext(Long.class).registerOnTime(record.<Long>getFieldAs(time) + tileMs - 1);
        }
        collect(values);
    }

    public void onTimer(OnTimerContext context, Row values) {
        context.clearAllState();
    }

    private Object folded(int index, Object held, Object more) {
        if (index < sums) {
            return held instanceof Long ? (Object) ((Long) held + (Long) more) : ((BigDecimal) held).add((BigDecimal) more);
        }
        @SuppressWarnings("unchecked")
        boolean isLess = ((Comparable<Object>) more).compareTo(held) < 0;
        return isLess == (index < sums + smallest) ? more : held;
    }

    private static StaticArgument columns(String name) {
        return StaticArgument.scalar(name, DataTypes.DESCRIPTOR(), true);
    }

    private static Stream<String> folded(CallContext call) {
        return Stream.of(SUMS, SMALLEST, LARGEST).flatMap(argument -> named(call, argument).stream());
    }

    private static List<String> named(CallContext call, int argument) {
        return call.getArgumentValue(argument, ColumnList.class).map(ColumnList::getNames).orElse(List.of());
    }
}
